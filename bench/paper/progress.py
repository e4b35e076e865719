"""What one sees while cells are done: a bar with the time left on a terminal, one line per cell elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.paper.plan import Cell
from bench.paper.store import Record


class Board:
    """A `Watcher`."""

    def __init__(self, console: Console) -> None:
        self._total, self._done, self._left = 0, 0, ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[running]}", style="dim", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._bar = self._progress.add_task("cells", left="", running="")

    @contextlib.contextmanager
    def shown(self, total: int, undone: int) -> Iterator[None]:
        """While cells are done; `undone` of all of them are not yet."""
        self._total, self._done = total, total - undone
        self._progress.update(self._bar, total=total, completed=self._done)
        if self._done:
            self._say(f"{self._done} of {total} cells are there from earlier runs")
        with self._progress:
            yield

    def begun(self, cell: Cell) -> None:
        pass  # the bar names those that run; a line for each would double the log

    def ended(self, cell: Cell, record: Record | None, complaint: str) -> None:
        if record is None:
            self._say(f"failed {cell.id}: {complaint}", "red")
            return
        self._done += 1
        self._progress.update(self._bar, completed=self._done)
        memory = record["peak_rss_bytes"] / 2**20
        line = (
            f"{self._done:>4}/{self._total} {cell.id:<34} {record['seconds']:7.0f} s {memory:6.0f} MiB{_right(record)}"
        )
        aside = "" if self._progress.console.is_terminal or not self._left else f"   {self._left}"
        self._say(line + aside)

    def passed(self, running: Mapping[Cell, float], left_s: float | None) -> None:
        self._left = "" if left_s is None else f"about {duration(left_s)} left"
        names = ", ".join(f"{cell.id} {seconds:.0f} s" for cell, seconds in running.items())
        self._progress.update(self._bar, left=self._left, running=names)

    def _say(self, line: str, style: str = "") -> None:
        self._progress.console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _right(record: Record) -> str:
    subtasks = record.get("subtasks", {}).values()
    if not subtasks:
        return ""
    shares = [one["right"] / one["asked"] for one in subtasks]
    return f"   {100 * sum(shares) / len(shares):5.1f} % right"
