"""The report as a table for people, and whether it is a failure."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = (
    ("model", "model", ""),
    ("host", "host", ""),
    ("mode", "mode", ""),
    ("swaps", "swaps", "d"),
    ("answers", "answers", "d"),
    ("dropped", "dropped", "d"),
    ("garbled", "garbled", "d"),
    ("ties", "ties", "d"),
    ("step ms", "step_ms", ".1f"),
    ("gap p50", "gap_p50_ms", ".1f"),
    ("p99", "gap_p99_ms", ".1f"),
    ("max ms", "gap_max_ms", ".1f"),
    ("stall p50", "stall_p50_ms", ".1f"),
    ("p99", "stall_p99_ms", ".1f"),
    ("max ms", "stall_max_ms", ".1f"),
    ("no swap p99", "quiet_p99_ms", ".1f"),
    ("gap p99 steps", "gap_p99_steps", ".2f"),
    ("copy ms", "copy_ms", ".1f"),
    ("allowed ms", "allowed_ms", ".1f"),
    ("switch p99 ms", "switch_p99_ms", ".2f"),
    ("load p50 ms", "load_p50_ms", ".0f"),
    ("client gap p99 ms", "client_gap_p99_ms", ".0f"),
    ("before", "client_gap_before_p99_ms", ".0f"),
)
_NOTE = (
    "garbled, ties: only finish claims exact answers. A tie is not what its version gives alone, yet complete, and "
    "each of its tokens is within 1e-3 of the likeliest, in log-probability, by the model's own code. "
    "gap: the longest time between the ends of two decode steps, from the begin of a load to the first step after the "
    "switch (recompute: to the first token of an answer that was read anew), without forwards that read new prompts "
    "only; it holds one ordinary step. stall: that gap less the step. step: the median before each "
    "load. allowed: 2 steps and one copy of the "
    "weights in memory; the target is judged by the p99 of the gap. no swap: the gap in times as "
    "long between swaps, where the engine can be asked. client gap: the longest silence that any client heard "
    "meanwhile, and in a time as long before."
)


def failed(report: dict[str, Any]) -> bool:
    """True when an answer was lost, or was neither version's own."""
    return any(row["dropped"] or row.get("garbled", 0) for row in report["rows"])


def show(report: dict[str, Any], console: Console) -> None:
    plan = report["plan"]
    table = Table(title=f"{plan['swaps']} swaps under {plan['streams']} greedy streams", title_justify="left")
    for title, _, kind in _COLUMNS:
        table.add_column(title, justify="right" if kind else "left", no_wrap=not kind)
    table.add_column("target (gap p99)", justify="right")
    for row in report["rows"]:
        cells = [_cell(row.get(key), kind) for _, key, kind in _COLUMNS]
        table.add_row(*cells, "[green]met[/]" if row["met"] else "[yellow]missed[/]")
    console.print(table)
    console.print(f"[dim]{_NOTE}[/]")
    dropped, garbled = (sum(row.get(name, 0) for row in report["rows"]) for name in ("dropped", "garbled"))
    style = "bold red" if failed(report) else "bold green"
    console.print(f"[{style}]{dropped} dropped, {garbled} garbled[/]")


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "-"
    return format(value, kind) if kind else str(value)
