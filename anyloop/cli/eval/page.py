"""`eval.html`: the evaluation on one page that needs nothing else; media are data URLs."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from anyloop.cli.demo.style import STYLE
from anyloop.cli.eval.bars import bars
from anyloop.cli.eval.plan import Measured, Plan, Shown
from anyloop.cli.eval.tables import verdict
from anyloop.cli.media_tags import media_tags
from anyloop.evaluation.duel import Duel
from anyloop.evaluation.generation import most
from anyloop.evaluation.intervals import Estimate
from anyloop.evaluation.scores import overall
from anyloop.evaluation.success import Count

_SAMPLES = 4  # shown of each section
_MORE = """
svg .bar{opacity:.85}svg .version0{fill:var(--accent)}svg .version1{fill:#b07d2b}
svg .whisker{stroke:var(--ink);stroke-width:1.5;fill:none}svg text.name{fill:var(--ink)}
.key{display:inline-block;width:11px;height:11px;border-radius:2px;margin:0 6px 0 14px}
.sides{display:grid;gap:20px}.of2{grid-template-columns:1fr 1fr}.of3{grid-template-columns:1fr 1fr 1fr}
.sides .text{margin-top:0}@media (max-width:640px){.sides{grid-template-columns:1fr}}
article .media{display:flex;gap:10px;flex-wrap:wrap;margin-bottom:8px}
"""


def page(plan: Plan, ours: Measured, theirs: Measured | None, duels: Mapping[str, Duel]) -> str:
    """One version, or two side by side."""
    both = (ours,) if theirs is None else (ours, theirs)
    sections = [_head(plan, both), _success(plan, both), _dimensions(both)]
    if theirs is not None:
        sections.append(_duel(ours, theirs, duels))
    sections += [_understanding(both), _generation(both), _own(both), _gallery(both), _notes(plan, both)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>AnyLoop evaluation: {escape(ours.name)}</title><style>{STYLE}{_MORE}</style></head><body><main>"
        f"{''.join(sections)}</main></body></html>\n"
    )


def _head(plan: Plan, both: Sequence[Measured]) -> str:
    tiles = []
    for one in both:
        mean = one.success.mean
        tiles.append((f"{mean.value:.1%}", f"{one.name}: mean success, {_between(mean)}"))
        if one.understanding is not None:
            tiles.append(
                (f"{one.understanding.amu.value:.2f}", f"{one.name}: AMU, {_between(one.understanding.amu, '.2f')}")
            )
        if one.generation is not None:
            tiles.append((f"{one.generation.amg.value:.2f}", f"{one.name}: AMG, {_between(one.generation.amg, '.2f')}"))
        if one.understanding is not None and one.generation is not None:
            both_scores = overall(one.understanding.amu.value, one.generation.amg.value)
            tiles.append((f"{both_scores:.2f}", f"{one.name}: overall, (AMU + AMG) / 2"))
    cells = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    asked = (
        f"{plan.prompts} prompts per subtask" if isinstance(plan.prompts, int) else f"prompts of {plan.prompts.name}"
    )
    judged = (
        "judged exactly on pixels, samples, frames and words"
        if plan.judge == "world"
        else "judged by the critique model"
    )
    return (
        f"<header><h1>{escape(' against '.join(one.name for one in both))}</h1>"
        f"<p>{escape(asked)}, {judged}. Intervals are of 95 %.</p>"
        f'<div class="tiles">{cells}</div></header>'
    )


def _success(plan: Plan, both: Sequence[Measured]) -> str:
    title = "Success per subtask" if plan.judge == "world" else "Answers that the critique model approves"
    rows = {name: [_of(one, name) for one in both] for name in both[0].success.subtasks}
    rows["mean"] = [one.success.mean for one in both]
    return f"<section><h2>{title}</h2>{_key(both)}{bars(rows, title)}</section>"


def _of(one: Measured, subtask: str) -> Estimate:
    return one.success.subtasks[subtask].share


def _dimensions(both: Sequence[Measured]) -> str:
    """All subtasks together, then each with its parts."""
    if not both[0].success.dimensions:
        return ""
    rows = [_count_row(name, [one.success.by_dimension[name] for one in both]) for name in both[0].success.by_dimension]
    for subtask, dimensions in both[0].success.dimensions.items():
        for key in dimensions:
            counts = [one.success.dimensions[subtask][key] for one in both]
            rows.append(_count_row(f"{subtask} · {key}", counts))
    whole = len(both[0].success.by_dimension)
    head = "".join(f"<th>{escape(one.name)}</th><th>interval</th>" for one in both)
    return (
        f"<section><h2>Right values per dimension</h2><table><thead><tr><th>dimension</th>{head}</tr></thead><tbody>"
        f"{''.join(rows[:whole])}</tbody></table><details><summary>By subtask and part</summary>"
        f"<table><tbody>{''.join(rows[whole:])}</tbody></table></details></section>"
    )


def _count_row(name: str, counts: Iterable[Count]) -> str:
    cells = "".join(
        f"<td>{count.share.value:.0%} <small>{count.right}/{count.asked}</small></td><td>{_between(count.share)}</td>"
        for count in counts
    )
    return f"<tr><th>{escape(name)}</th>{cells}</tr>"


def _duel(ours: Measured, theirs: Measured, duels: Mapping[str, Duel]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{one.wins}</td><td>{one.ties}</td><td>{one.losses}</td>"
        f"<td>{one.win_rate.value:.1%}</td><td>{_between(one.win_rate, '.1%')}</td><td>{one.p_value:.3g}</td></tr>"
        for name, one in duels.items()
    )
    whole = next(iter(duels.values()))
    return (
        f"<section><h2>Win rate of {escape(ours.name)} over {escape(theirs.name)}</h2>"
        f"<p>{escape(verdict(ours, theirs, whole))} A prompt is won by the version with the higher mean score there; a "
        "tie counts as half a win in the rate and not at all in the sign test.</p>"
        "<table><thead><tr><th>prompts</th><th>wins</th><th>ties</th><th>losses</th><th>win rate</th><th>interval</th>"
        f"<th>p</th></tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _understanding(both: Sequence[Measured]) -> str:
    reports = [one.understanding for one in both if one.understanding is not None]
    if not reports:
        return ""
    rows = {name: [report.categories[name] for report in reports] for name in reports[0].categories}
    rows["AMU"] = [report.amu for report in reports]
    return (
        "<section><h2>Understanding (AMU)</h2><p>The reference world's version: a picture, a sound and a question in, "
        "words out, rated 1-10 by rule.</p>"
        f"{_key(both)}{bars(rows, 'Mean rating per category', most=10, form='.1f')}</section>"
    )


def _generation(both: Sequence[Measured]) -> str:
    reports = [one.generation for one in both if one.generation is not None]
    if not reports:
        return ""
    made = [report.generation for report in reports]
    rows = [
        _row("selection α", [f"{r.selection.value:.3f} <small>{_between(r.selection, '.3f')}</small>" for r in reports])
    ]
    for slot in made[0].following:
        there = [report.present[slot] for report in reports]
        values = [
            f"{one.following[slot]:.2f} <small>in {n} of {wanted} answers</small>"
            for one, (n, wanted) in zip(made, there, strict=True)
        ]
        rows.append(_row(f"S {slot}", values))
    for pair in made[0].synergy:
        rows.append(_row(f"synergy {' and '.join(pair)}", [f"{one.synergy[pair]:.2f}" for one in made]))
    rows.append(_row("AMG", [f"{r.amg.value:.2f} <small>{_between(r.amg, '.2f')}</small>" for r in reports]))
    kinds = "".join(
        _row(kind, [", ".join(f"{escape(name)} {times}" for name, times in r.choices[kind].items()) for r in reports])
        for kind in reports[0].choices
    )
    return (
        "<section><h2>Generation (AMG)</h2><p>Open prompts name no modalities; α is the share of votes for the set "
        "that the model chose. A part that an answer lacks scores 0, and so does every synergy with it. "
        f"With the world's votes AMG can reach {most():.2f}, not 30.</p>"
        f"<table><thead><tr><th>score</th>{_names(both)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        f"<h3>What the model answered with</h3><table><thead><tr><th>kind of prompt</th>{_names(both)}</tr></thead>"
        f"<tbody>{kinds}</tbody></table></section>"
    )


def _own(both: Sequence[Measured]) -> str:
    """Modality selection and synergy on one's own prompts."""
    rows = []
    if all(one.chosen is not None for one in both):
        chosen = [one.chosen for one in both if one.chosen is not None]
        rows.append(_row("selection α", [f"{c.selection.value:.3f} {_between(c.selection, '.3f')}" for c in chosen]))
    for pair in dict.fromkeys(pair for one in both for pair in one.synergy or ()):
        counts = [(one.synergy or {}).get(pair) for one in both]
        values = [f"{c.share.value:.0%} <small>{c.right}/{c.asked}</small>" if c else "–" for c in counts]
        rows.append(_row(f"synergy {' and '.join(pair)}", values))
    if not rows:
        return ""
    return (
        "<section><h2>Modalities</h2><p>Synergy: of the answers with both parts, how often the critique model takes "
        f"one for a right answer to the other.</p><table><thead><tr><th>score</th>{_names(both)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _gallery(both: Sequence[Measured]) -> str:
    """The first answers of each section, those first on which the versions differ, wrong ones before right ones."""
    sections: dict[str, list[tuple[Shown, ...]]] = {}
    for answers in zip(*(one.shown for one in both), strict=True):
        sections.setdefault(answers[0].section, []).append(answers)
    cards = []
    for section, found in sections.items():
        found = sorted(found, key=lambda answers: (len({one.ok for one in answers}) == 1, answers[0].ok))
        half = _SAMPLES // 2
        chosen = found[:half] + found[max(half, len(found) - half) :]  # both ends: wrong ones and right ones
        right = " / ".join(str(sum(answers[n].ok for answers in sections[section])) for n in range(len(both)))
        cards.append(f"<h3>{escape(section)} <small>{right} of {len(found)} without a fault</small></h3>")
        cards += [_card(answers, both) for answers in chosen]
    return f"<section><h2>Samples</h2>{''.join(cards)}</section>"


def _card(answers: tuple[Shown, ...], both: Sequence[Measured]) -> str:
    question = answers[0].answered.question
    sides = "".join(
        f"<div><h4>{escape(version.name)}</h4>{_answer(one)}</div>" for one, version in zip(answers, both, strict=True)
    )
    return (
        f'<article class="sides of{1 + len(both)}"><div><h4>asked</h4><p class="prompt">{escape(question.words)}</p>'
        f'<div class="media">{media_tags(question.files)}</div></div>{sides}</article>'
    )


def _answer(one: Shown) -> str:
    words = one.answered.reply.text
    text = f'<p class="text">{escape(words)}</p>' if words else ""
    said = f'<p class="critique">“{escape(one.words)}”</p>' if one.words else ""
    verdict_kind = "up" if one.ok else "down"
    return (
        f'<div class="media">{media_tags(one.answered.files)}</div>{text}'
        f'<p class="verdict {verdict_kind}">{escape(one.verdict)}</p>{said}'
    )


def _notes(plan: Plan, both: Sequence[Measured]) -> str:
    seeds = f"seed {plan.seed}, {plan.samples} answer{'s' if plan.samples > 1 else ''} to each prompt"
    where = f", {plan.split} combinations" if plan.judge == "world" else ""
    critics = ", ".join(dict.fromkeys(one.critic for one in both if one.critic))
    by = f" The critique model was {critics}." if critics else ""
    return (
        "<footer><h2>How it was measured</h2><p>Through REST with <code>store: false</code>, so that nothing can learn "
        f"from it; {escape(seeds)}{escape(where)}, the same for every version.{escape(by)} Shares have Wilson "
        "intervals, wider where a prompt was answered more than once; means are bootstrapped over prompts.</p></footer>"
    )


def _key(both: Sequence[Measured]) -> str:
    if len(both) == 1:
        return ""
    colours = ("var(--accent)", "#b07d2b")
    return "".join(
        f'<span class="key" style="background:{colour}"></span>{escape(one.name)}'
        for colour, one in zip(colours, both, strict=True)
    )


def _names(both: Sequence[Measured]) -> str:
    return "".join(f"<th>{escape(one.name)}</th>" for one in both)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _between(one: Estimate, form: str = ".0%") -> str:
    return "" if math.isnan(one.low) else f"[{one.low:{form}}, {one.high:{form}}]"
