"""The progress display of `anyloop up`: a live table on a terminal, one line per change elsewhere."""

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from anyloop.cli.supervisor import Service, State

_STYLES = {
    State.WAITING: "dim",
    State.STARTING: "yellow",
    State.READY: "green",
    State.STOPPING: "yellow",
    State.STOPPED: "dim",
    State.DIED: "bold red",
}


class Board:
    """Give `show` to the supervisor as `on_change`; it is cheap enough for every poll. May be entered again."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._said: dict[str, State] = {}
        self._spinner = Spinner("dots")

    def __enter__(self) -> "Board":
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def show(self, services: Sequence[Service]) -> None:
        if self._live:
            self._live.update(self._table(services), refresh=True)
            return
        for service in services:
            if self._said.get(service.spec.name) != service.state:
                self._said[service.spec.name] = service.state
                if service.state != State.WAITING:
                    self._console.print(_line(service), highlight=False)

    def _table(self, services: Sequence[Service]) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for service in services:
            busy = service.state in (State.STARTING, State.STOPPING)
            mark = self._spinner.render(time.monotonic()) if busy else Text("●", style=_STYLES[service.state])
            table.add_row(mark, service.spec.name, Text(service.state, style=_STYLES[service.state]), _detail(service))
        return table


def _line(service: Service) -> str:
    return f"{service.spec.name:<9} {service.state:<9} {_detail(service)}".rstrip()


def _detail(service: Service) -> str:
    if service.state == State.READY:
        return f"{service.ready_after_s:5.1f} s  {service.spec.address}"
    return "" if service.state != State.WAITING else f"after {', '.join(service.spec.after)}"
