"""`demo-report.html`: the demo on one page that needs nothing else; media are data URLs."""

from collections.abc import Sequence
from html import escape

from anyloop.cli.demo.asking import Exchange, File, file_of
from anyloop.cli.demo.curve import learning_curve
from anyloop.cli.demo.evaluation import Evaluation
from anyloop.cli.demo.results import Results, Round, SideBySide
from anyloop.cli.demo.style import STYLE
from anyloop.cli.media_tags import media_tag, media_tags
from anyloop.world import SUBTASKS

_PHASES = {
    "ask": "prompts",
    "feedback": "critiques",
    "learn": "learning",
    "gate": "gate",
    "swap": "swap",
    "evaluate": "evaluation",
}


def page(results: Results) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>AnyLoop demo report</title><style>{STYLE}</style></head><body><main>"
        f"{_head(results)}{_success(results)}{_rounds(results.rounds)}{_gallery(results)}{_notes(results)}"
        "</main></body></html>\n"
    )


def _head(results: Results) -> str:
    before, after = results.before, results.after
    tiles = (
        (f"{before.mean:.0%} → {after.mean:.0%}", "mean success on held-out prompts"),
        (f"{len(results.improved)} of {len(SUBTASKS)}", "subtasks improved"),
        (_used(results.feedback_used, sum(r.feedback_events for r in results.rounds)), "critiques learned from"),
        (str(results.failed_in_swaps), f"requests failed in {sum(r.swap is not None for r in results.rounds)} swaps"),
        (f"{results.seconds['total'] / 60:.1f} min", f"{results.peak_memory_bytes / 2**30:.1f} GiB at the peak"),
    )
    cells = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for value, name in tiles)
    return (
        "<header><h1>AnyLoop demo</h1><p>An any-to-any model answered, people said in words what was wrong, the model "
        "learned from those words alone, passed its gate, and came into service while requests went on.</p>"
        f'<div class="tiles">{cells}</div></header>'
    )


def _success(results: Results) -> str:
    evaluations = results.evaluations
    heads = "".join(f"<th>{escape(' '.join(e.versions))}</th>" for e in evaluations)
    rows = [_success_row(name, [e.scores[name].rate for e in evaluations], evaluations, name) for name in SUBTASKS]
    rows.append(_success_row("mean", [e.mean for e in evaluations], evaluations, None))
    return (
        f"<section><h2>Success per subtask</h2><table><thead><tr><th>subtask</th>{heads}<th>change</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>{learning_curve(evaluations)}</section>"
    )


def _success_row(name: str, rates: Sequence[float], evaluations: Sequence[Evaluation], subtask: str | None) -> str:
    cells = []
    for rate, evaluation in zip(rates, evaluations, strict=True):
        score = evaluation.scores[subtask] if subtask else None
        detail = f"{score.right}/{score.asked}" if score else f"± {evaluation.standard_error * 100:.1f}"
        cells.append(f"<td>{rate:.0%} <small>{detail}</small></td>")
    points = (rates[-1] - rates[0]) * 100
    kind = "up" if points > 0 else "down" if points < 0 else "same"
    row = "total" if subtask is None else ""
    return f'<tr class="{row}"><th>{name}</th>{"".join(cells)}<td class="{kind}">{points:+.1f}</td></tr>'


def _rounds(rounds: Sequence[Round]) -> str:
    rows = []
    for r in rounds:
        phases = "<br>".join(f"{label} {r.seconds[key]:.1f} s" for key, label in _PHASES.items() if key in r.seconds)
        swap = r.swap
        stall = swap.stall_text if swap else "–"
        load = f"{swap.requests.served} / {swap.requests.failed}" if swap else "–"
        decision = f'<b class="{"up" if swap else "down"}">{escape(r.state)}</b> {escape(r.candidate)}'
        rows.append(
            f"<tr><th>{r.number}</th><td>{_used(r.feedback_used, r.feedback_events)}</td><td>{r.right}/{r.asked}</td>"
            f'<td class="words">{decision}<small>{escape(r.reason)}</small></td><td>{stall}</td><td>{load}</td>'
            f'<td class="words"><small>{phases}</small></td></tr>'
        )
    return (
        "<section><h2>Rounds</h2><table><thead><tr><th>round</th><th>critiques</th><th>right when asked</th>"
        '<th class="words">gate</th><th>swap stall</th><th>served / failed in swap</th>'
        '<th class="words">time per phase</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></section>"
    )


def _used(used: int | None, posted: int) -> str:
    """What the trainer took, and what was posted where that is another number."""
    if used == posted:
        return str(posted)
    return f"{'?' if used is None else used} of {posted}"


def _gallery(results: Results) -> str:
    cards = []
    for subtask in SUBTASKS:
        pairs = [pair for pair in results.reasked if pair.before.task.subtask == subtask]
        if not pairs:
            continue
        right = sum(pair.after.judgement.ok for pair in pairs)
        shown = sorted(pairs, key=lambda pair: not pair.after.judgement.ok)[: results.plan.samples]
        cards.append(
            f"<h3>{subtask} <small>{right} of {len(pairs)} criticised answers asked again are right now</small></h3>"
            + "".join(_card(pair) for pair in shown)
        )
    return f"<section><h2>Before, the critique, after</h2>{''.join(cards)}</section>"


def _card(pair: SideBySide) -> str:
    task = pair.before.task
    media = "".join(media_tag(File(m, mime, data)) for m, array in task.media for data, mime in [file_of(m, array)])
    return (
        f'<article><p class="prompt">{escape(task.prompt)}</p>{media}<div class="pair">'
        f"<div><h4>before <small>{escape(pair.before.reply.version)}</small></h4>{_answer(pair.before)}"
        f'<p class="critique">“{escape(pair.critique)}”</p></div>'
        f"<div><h4>after <small>{escape(pair.after.reply.version)}</small></h4>{_answer(pair.after)}</div>"
        "</div></article>"
    )


def _answer(exchange: Exchange) -> str:
    text = f'<p class="text">{escape(exchange.reply.text)}</p>' if exchange.reply.text else ""
    if exchange.judgement.ok:
        verdict = '<p class="verdict up">right</p>'
    else:
        faults = dict.fromkeys(fault.dimension for fault in exchange.judgement.failed)
        verdict = f'<p class="verdict down">wrong: {escape(", ".join(faults))}</p>'
    return f"{media_tags(exchange.files)}{text}{verdict}"


def _notes(results: Results) -> str:
    plan = results.plan
    facts = ", ".join(f"{name} {value}" for name, value in results.environment.items())
    return (
        "<footer><h2>How it was measured</h2><p>"
        f"Held-out prompts ({plan.eval_prompts} per subtask, combinations that neither training nor the loop ever "
        "saw) are the same with the same sampling seeds for every version; they go through REST with "
        "<code>store: false</code>, so that nothing can learn from them. Judges measure the pixels, samples, frames "
        "and words of the files as served. Traffic of other users ran at "
        f"{plan.traffic:g} requests a second all the time: {results.traffic.served} served, {results.traffic.failed} "
        "failed. A request counts to a swap when it was under way from two seconds before the promotion to two seconds "
        "after the first answer of the new version. The stall is the time without a decode step, measured in the "
        "replica. Memory is the proportional set size of the whole process tree. The examples above are wrong answers "
        "of the rounds with the critique that was posted, asked again with the same seed at the end; repaired ones are "
        "shown first.</p>"
        f"<p><small>{escape(facts)}; seed {plan.seed}.</small></p></footer>"
    )
