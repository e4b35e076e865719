"""The evaluation as tables in a terminal."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from anyloop.cli.eval.plan import Measured
from anyloop.evaluation.duel import Duel
from anyloop.evaluation.generation import most
from anyloop.evaluation.intervals import Estimate
from anyloop.evaluation.scores import overall
from anyloop.evaluation.success import Count

_PAD = (0, 2, 0, 0)


def show(console: Console, one: Measured) -> None:
    """Success by subtask, then by dimension, then whatever else was measured."""
    table = Table("subtask", "right", "asked", "rate", "interval", box=None, padding=_PAD, title=one.name)
    for name, count in one.success.subtasks.items():
        table.add_row(name, *_row(count))
    mean = one.success.mean
    table.add_row("[bold]mean[/]", "", "", f"[bold]{mean.value:.1%}[/]", between(mean))
    console.print(table)
    if one.success.by_dimension:
        console.print(_counts("dimension", one.success.by_dimension))
    if one.critic:
        console.print(f"Judged by {one.critic}: right is what it approves.", highlight=False)
    if one.agreement is not None:
        console.print(f"It agrees with the exact judge in {one.agreement.share.value:.1%}.", highlight=False)
    if one.synergy:
        console.print(_counts("parts that agree", {" and ".join(pair): count for pair, count in one.synergy.items()}))
    if one.chosen is not None:
        sets = ", ".join(f"{name} {times}" for name, times in one.chosen.choices.items())
        alpha = one.chosen.selection
        console.print(f"Modality selection α {alpha.value:.3f} {between(alpha, '.3f')}: {sets}", highlight=False)
    _show_scores(console, one)


def show_duel(console: Console, ours: Measured, theirs: Measured, duels: Mapping[str, Duel]) -> None:
    """Wins, ties and losses by subtask; the last line says what they show."""
    title = f"{ours.name} against {theirs.name}"
    table = Table("subtask", "wins", "ties", "losses", "win rate", "interval", box=None, padding=_PAD, title=title)
    (_, whole), *groups = duels.items()
    for name, one in [*groups, ("[bold]all[/]", whole)]:
        rate = one.win_rate
        table.add_row(name, str(one.wins), str(one.ties), str(one.losses), f"{rate.value:.1%}", between(rate))
    console.print(table)
    console.print(
        f"{verdict(ours, theirs, whole)} (sign test p = {whole.p_value:.3g})", highlight=False, soft_wrap=True
    )


def verdict(ours: Measured, theirs: Measured, one: Duel) -> str:
    """A sentence, by the exact interval of wins among the prompts that are no tie."""
    if one.decided.low > 0.5:
        return f"{ours.name} is better: it wins {one.wins} of {one.wins + one.losses} decided prompts."
    if one.decided.high < 0.5:
        return f"{theirs.name} is better: it wins {one.losses} of {one.wins + one.losses} decided prompts."
    return "No difference that these prompts can show."


def between(one: Estimate, form: str = ".1%") -> str:
    """The interval, escaped for rich."""
    return "" if math.isnan(one.low) else rf"\[{one.low:{form}}, {one.high:{form}}]"


def _show_scores(console: Console, one: Measured) -> None:
    if one.understanding is not None:
        table = Table("AMU (1-10)", "mean", "interval", box=None, padding=_PAD)
        for name, category in one.understanding.categories.items():
            table.add_row(name, f"{category.value:.2f}", between(category, ".2f"))
        amu = one.understanding.amu
        table.add_row("[bold]AMU[/]", f"[bold]{amu.value:.2f}[/]", between(amu, ".2f"))
        console.print(table)
    if one.generation is not None:
        made = one.generation.generation
        table = Table(f"AMG (of {most():.2f} that the votes allow)", "score", "", box=None, padding=_PAD)
        table.add_row("selection α", f"{made.selection:.3f}", between(one.generation.selection, ".3f"))
        for slot, value in made.following.items():
            there, wanted = one.generation.present[slot]
            table.add_row(f"S {slot}", f"{value:.2f}", f"in {there} of {wanted} answers that should have it")
        for pair, value in made.synergy.items():
            table.add_row(f"synergy {' and '.join(pair)}", f"{value:.2f}", "")
        amg = one.generation.amg
        table.add_row("[bold]AMG[/]", f"[bold]{amg.value:.2f}[/]", between(amg, ".2f"))
        console.print(table)
    if one.understanding is not None and one.generation is not None:
        both = overall(one.understanding.amu.value, one.generation.amg.value)
        console.print(f"Overall, (AMU + AMG) / 2: {both:.2f}", highlight=False)


def _counts(title: str, counts: Mapping[str, Count]) -> Table:
    table = Table(title, "right", "asked", "rate", "interval", box=None, padding=_PAD)
    for name, count in counts.items():
        table.add_row(name, *_row(count))
    return table


def _row(count: Count) -> tuple[str, str, str, str]:
    return str(count.right), str(count.asked), f"{count.share.value:.0%}", between(count.share, ".0%")
