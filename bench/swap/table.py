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
    ("step ms", "step_ms", ".1f"),
    ("stall p50", "stall_p50_ms", ".1f"),
    ("p99", "stall_p99_ms", ".1f"),
    ("max ms", "stall_max_ms", ".1f"),
    ("no swap p99", "quiet_p99_ms", ".1f"),
    ("p99 steps", "stall_p99_steps", ".2f"),
    ("copy ms", "copy_ms", ".1f"),
    ("allowed ms", "allowed_ms", ".1f"),
    ("switch p99 ms", "switch_p99_ms", ".2f"),
    ("load p50 ms", "load_p50_ms", ".0f"),
    ("client gap p99 ms", "client_gap_p99_ms", ".0f"),
    ("before", "client_gap_before_p99_ms", ".0f"),
)
_NOTE = (
    "stall: the longest time between the ends of two decode steps, from the begin of a load to the first step on the "
    "new weights, without what steps spend on new prompts; it holds one ordinary step. step: the median before each "
    "load. allowed: 2 steps and one copy of the "
    "weights in memory, which the p99 is held against. no swap: the stall in times as "
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
    table.add_column("target", justify="right")
    for row in report["rows"]:
        cells = [_cell(row.get(key), kind) for _, key, kind in _COLUMNS]
        table.add_row(*cells, "[green]met[/]" if row["met"] else "[yellow]missed[/]")
    console.print(table)
    for row in report["rows"]:
        if row.get("ties"):
            where = f"{row['model']}, {row['host']}"
            console.print(f"{where}: {row['ties']} answers part from their version's own at two equally likely tokens")
    console.print(f"[dim]{_NOTE}[/]")
    dropped, garbled = (sum(row.get(name, 0) for row in report["rows"]) for name in ("dropped", "garbled"))
    style = "bold red" if failed(report) else "bold green"
    console.print(f"[{style}]{dropped} dropped, {garbled} garbled[/]")


def _cell(value: Any, kind: str) -> str:
    if value is None:
        return "-"
    return format(value, kind) if kind else str(value)
