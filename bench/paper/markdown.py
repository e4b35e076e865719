"""Tables as Markdown has them, and figures as the page shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    lines = [_line(header), _line(["---", *["---:"] * (len(header) - 1)])]
    return "\n".join([*lines, *map(_line, rows)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def percent(found: Mapping[str, Any]) -> str:
    return f"{100 * found['mean']:.1f}"


def gain(found: Mapping[str, Any] | None) -> str:
    """`+12.3 ±4.3`: points, and half of the interval's width (it may lie unevenly where it is a bootstrap's)."""
    if not found:
        return ""
    return f"{100 * found['mean']:+.1f} ±{50 * (found['high'] - found['low']):.1f}"


def between(found: Mapping[str, Any]) -> str:
    """`54.2 [50.1, 58.3]`"""
    return f"{percent(found)} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
