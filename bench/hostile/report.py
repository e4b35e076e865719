"""The cells as one table: success on held-out prompts, and what the robust mode saw. Pure but for `show`."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

# Two-sided 95 % points of Student's t, by degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def summary(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per condition: means over the seeds that have been run, the difference that robustness makes by pairs."""
    by = {(one["cell"]["seed"], one["cell"]["kind"], one["cell"]["share"], one["cell"]["stated"]): one for one in cells}
    rows = []
    for kind, share in dict.fromkeys((key[1], key[2]) for key in by if key[1] != "base"):
        stated = max(key[3] for key in by if key[1:3] == (kind, share))
        without = {key[0]: one for key, one in by.items() if key[1:] == (kind, share, 0.0)}
        robust = {key[0]: one for key, one in by.items() if key[1:] == (kind, share, stated) and stated}
        both = sorted(without.keys() & robust.keys())
        differences = [_right(robust[seed]) - _right(without[seed]) for seed in both]
        rows.append(
            {
                "kind": kind,
                "share": share,
                "stated": stated,
                "base": _mean([_right(one) for key, one in by.items() if key[1] == "base"]),
                "believing": _mean([_right(one) for one in without.values()]),
                "robust": _mean([_right(one) for one in robust.values()]),
                "difference": _mean(differences),
                "difference_95": interval(differences),
                "lies_caught": _mean([one["trimmed_lies"] / one["lies"] for one in robust.values() if one["lies"]]),
                "honest_lost": _mean([one["honest_lost"] for one in robust.values()]),
                "seeds": len(both),
            }
        )
    return rows


def interval(values: Sequence[float]) -> list[float] | None:
    """Of a mean over seeds, by Student's t; None of one seed."""
    if len(values) < 2:
        return None
    half = _T95[min(len(values) - 2, len(_T95) - 1)] * stdev(values) / sqrt(len(values))
    return [mean(values) - half, mean(values) + half]


def show(document: dict[str, Any], console: Console) -> None:
    table = Table(title="right on held-out prompts after one round, %")
    for name in ("hostile", "stated", "base", "believing", "robust", "difference", "caught", "lost", "seeds"):
        table.add_column(name, justify="left" if name == "hostile" else "right")
    for row in document.get("summary", []):
        bounds = row["difference_95"]
        table.add_row(
            f"{100 * row['share']:.0f} % {row['kind']}" if row["share"] else "none",
            f"{100 * row['stated']:.0f} %",
            *(_percent(row[name]) for name in ("base", "believing", "robust")),
            _signed(row["difference"]) + (f" [{_signed(bounds[0])}, {_signed(bounds[1])}]" if bounds else ""),
            _percent(row["lies_caught"]),
            "-" if row["honest_lost"] is None else f"{row['honest_lost']:.0f}",
            str(row["seeds"]),
        )
    console.print(table)
    plan = document["plan"]
    console.print(
        f"{plan['prompts']} critiques a round, {plan['per_subtask']} held-out prompts per subtask. Stated: the share "
        "that the robust mode is told. Scattered: anybody's statement may be a lie. Ring: three principals lie always. "
        "Caught: lies that weigh nothing; lost: weight taken from honest statements, in statements.",
        style="dim",
    )


def _right(cell: dict[str, Any]) -> float:
    return float(cell["success"]["mean"])


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"
