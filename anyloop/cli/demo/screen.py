"""What a person sees while the demo runs: the growing table, the phase at work, the traffic."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from anyloop.cli.demo.evaluation import Evaluation
from anyloop.cli.demo.traffic import Count
from anyloop.world import SUBTASKS


class Screen:
    """Live on a terminal; elsewhere one line per phase and the table at the end."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._evaluations: list[Evaluation] = []
        self._traffic = Count(0, 0)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None
        self._live = (
            Live(get_renderable=self._render, console=console, refresh_per_second=4) if console.is_terminal else None
        )

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """A phase at work; call what it gives once per step (`total` None: nobody knows how many)."""
        if self._live is None:
            self._console.print(name, highlight=False)
        task = self._task = self._progress.add_task(name, total=total)
        try:
            yield (lambda: self._progress.advance(task)) if total else (lambda: None)
        finally:
            self._progress.remove_task(task)

    def rename(self, name: str) -> None:
        """What the present phase is about now."""
        if self._live is None:
            self._console.print(name, highlight=False)
        if self._task is not None:
            self._progress.update(self._task, description=name)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def add(self, evaluation: Evaluation) -> None:
        """One more column."""
        self._evaluations.append(evaluation)
        if self._live is None:
            self._console.print(success_table(self._evaluations))

    def count(self, traffic: Count) -> None:
        self._traffic = traffic

    def _render(self) -> Group:
        traffic = Text(f"traffic: {self._traffic.served} served, {self._traffic.failed} failed", style="dim")
        if self._traffic.failed:
            traffic.stylize("bold red")
        table = [success_table(self._evaluations)] if self._evaluations else []
        return Group(*table, self._progress, traffic)


def success_table(evaluations: list[Evaluation]) -> Table:
    """Success per subtask on held-out prompts, one column per version, the change at the end."""
    table = Table(title="Right answers on held-out prompts", box=None, title_justify="left", padding=(0, 2, 0, 0))
    table.add_column("subtask")
    for n, evaluation in enumerate(evaluations):
        table.add_column(
            " ".join(evaluation.versions) if n else f"before ({' '.join(evaluation.versions)})", justify="right"
        )
    if len(evaluations) > 1:
        table.add_column("change", justify="right")
    for subtask in SUBTASKS:
        _add_row(table, subtask, [evaluation.scores[subtask].rate for evaluation in evaluations], "")
    _add_row(table, "mean", [evaluation.mean for evaluation in evaluations], "bold")
    return table


def _add_row(table: Table, name: str, rates: list[float], style: str) -> None:
    cells = [f"{rate:.0%}" for rate in rates]
    if len(rates) > 1:
        points = (rates[-1] - rates[0]) * 100
        colour = "green" if points > 0 else "red" if points < 0 else "dim"
        cells.append(f"[{colour}]{points:+.0f}[/]")
    table.add_row(name, *cells, style=style)
