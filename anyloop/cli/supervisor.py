"""Starts the services of one machine in order, waits until each is truly ready, notices one that dies, stops all.

The supervisor owns its children: they live in sessions of their own, the kernel ends them with it, and `stop` sweeps
each session, so that nothing survives.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import FrameType, TracebackType

from anyloop.cli.child import Child
from anyloop.cli.exits import CommandError
from anyloop.cli.topology import ServiceSpec

_POLL_S = 0.15


class State(StrEnum):
    WAITING = "waiting"  # for the services it needs
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"
    DIED = "died"


@dataclass
class Service:
    """What is known of one process now."""

    spec: ServiceSpec
    state: State = State.WAITING
    child: Child | None = None
    ready_after_s: float = 0.0


class ServiceDied(CommandError):
    """A service ended by itself. The message names it and ends with the end of its log."""

    def __init__(self, service: str, status: int, log: Path, tail: str) -> None:
        ended = f"was ended by signal {-status}" if status < 0 else f"exited with status {status}"
        super().__init__(f"{service} {ended}. The end of {log}:\n{tail}")
        self.service = service
        self.status = status


class Supervisor:
    """`with Supervisor(specs, ...) as s: s.start(); s.watch()`. Leaving the block stops everything."""

    def __init__(
        self,
        specs: Sequence[ServiceSpec],
        *,
        log_dir: Path,
        start_timeout_s: float = 180.0,
        on_change: Callable[[Sequence[Service]], None] = lambda services: None,
        on_ready: Callable[[str], None] = lambda name: None,
    ) -> None:
        """`specs` stand in order of start; services are stopped in the reverse of it. `on_ready` runs with the name of
        each service that becomes ready, before any is started that waits for it."""
        self.services = [Service(spec) for spec in specs]
        self._log_dir = log_dir
        self._start_timeout_s = start_timeout_s
        self.on_change = on_change
        self._on_ready = on_ready

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when all are ready. Raises CommandError on a taken port, on a dead service, or after the timeout."""
        refuse_taken_ports([service.spec for service in self.services])
        deadline = time.monotonic() + self._start_timeout_s
        while any(service.state != State.READY for service in self.services):
            self._start_those_whose_turn_it_is()
            self.check()
            self._probe()
            self.on_change(self.services)
            if time.monotonic() > deadline:
                raise self._late()
            time.sleep(_POLL_S)

    def watch(self) -> None:
        """Blocks while all is well. Raises ServiceDied."""
        while True:
            self.check()
            self.on_change(self.services)
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Raises ServiceDied when a service has ended by itself."""
        for service in self.services:
            status = service.child.exit_status() if service.child else None
            if service.child and status is not None and service.state in (State.STARTING, State.READY, State.DIED):
                service.state = State.DIED
                self.on_change(self.services)
                raise ServiceDied(service.spec.name, status, service.child.log, service.child.log_tail())

    def stop(self) -> None:
        """Asks the services to stop, last started first, each after the other; kills what does not. A signal meanwhile
        kills at once."""
        impatient = False

        def hurry(_signal: int, _frame: FrameType | None) -> None:
            nonlocal impatient
            impatient = True

        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), hurry):
            for service in reversed(self.services):
                child = service.child
                if child is None:
                    continue
                died = service.state == State.DIED
                service.state = State.DIED if died else State.STOPPING
                child.terminate()
                deadline = time.monotonic() + service.spec.stop_seconds
                while child.exit_status() is None and time.monotonic() < deadline and not impatient:
                    self.on_change(self.services)
                    time.sleep(_POLL_S / 3)
                child.kill()
                service.state = State.DIED if died else State.STOPPED
                self.on_change(self.services)

    def _start_those_whose_turn_it_is(self) -> None:
        ready = {service.spec.name for service in self.services if service.state == State.READY}
        for service in self.services:
            if service.state == State.WAITING and ready.issuperset(service.spec.after):
                log = self._log_dir / f"{service.spec.name}.log"
                service.child = Child(service.spec.argv, {**os.environ, **service.spec.env}, log)
                service.state = State.STARTING

    def _probe(self) -> None:
        for service in self.services:
            if service.state == State.STARTING and service.child and service.spec.probe.ready():
                service.state = State.READY
                service.ready_after_s = time.monotonic() - service.child.started
                self._on_ready(service.spec.name)

    def _late(self) -> CommandError:
        late = [service for service in self.services if service.state == State.STARTING]
        said = "\n".join(f"The end of {s.child.log}:\n{s.child.log_tail()}" for s in late if s.child)
        names = ", ".join(service.spec.name for service in late)
        return CommandError(f"Not ready after {self._start_timeout_s:.0f} s: {names}. {said}")


class handled:
    """Signal handlers for a block; the old ones come back after it."""

    def __init__(
        self, signals: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None] | None = None
    ) -> None:
        """Without a handler the signals raise KeyboardInterrupt, as Ctrl-C does."""
        self._signals = signals
        self._handler = handler or signal.default_int_handler
        self._before: list[tuple[signal.Signals, object]] = []

    def __enter__(self) -> None:
        self._before = [(number, signal.signal(number, self._handler)) for number in self._signals]

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)  # type: ignore[arg-type]


def refuse_taken_ports(specs: Sequence[ServiceSpec]) -> None:
    """Raises CommandError naming the first port that something else listens on."""
    for spec in specs:
        for port in spec.ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    raise CommandError(
                        f"Port {port}, which {spec.name} needs, is taken: stop what listens there (another "
                        "`anyloop up`?) or move all ports with --port-offset 1000"
                    ) from error
