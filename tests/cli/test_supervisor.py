import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import Service, ServiceDied, State, Supervisor, handled
from anyloop.cli.topology import ServiceSpec

_SLEEP = "import time; time.sleep(60)"
_STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
)


@dataclass
class FileProbe:
    """Ready when the file is there; remembers when it was asked first."""

    path: Path
    asked: list[float] = field(default_factory=list)

    def ready(self) -> bool:
        self.asked.append(time.monotonic())
        return self.path.exists()


@dataclass
class Yes:
    def ready(self) -> bool:
        return True


@dataclass
class Never:
    """Not ready, ever; says so when the service has said something, however slow the machine."""

    log: Path

    def ready(self) -> bool:
        deadline = time.monotonic() + 60
        while not self.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        return False


def _spec(name: str, program: str = _SLEEP, **options: object) -> ServiceSpec:
    defaults: dict[str, object] = {"probe": Yes(), "address": "", "ports": (), "stop_seconds": 5.0}
    return ServiceSpec(name=name, argv=(sys.executable, "-c", program), **{**defaults, **options})  # type: ignore[arg-type]


def test_a_service_starts_only_when_those_it_needs_are_ready(tmp_path: Path) -> None:
    touch = tmp_path / "first-is-ready"
    first = _spec("first", f"import time; time.sleep(.4); open({str(touch)!r}, 'w'); {_SLEEP}", probe=FileProbe(touch))
    states: list[tuple[State, ...]] = []

    def remember(services: Sequence[Service]) -> None:
        states.append(tuple(service.state for service in services))

    with Supervisor([first, _spec("second", after=("first",))], log_dir=tmp_path, on_change=remember) as supervisor:
        supervisor.start()
    assert (State.STARTING, State.WAITING) in states
    assert (State.WAITING, State.STARTING) not in states
    assert (State.STARTING, State.STARTING) not in states
    assert states[-1] == (State.STOPPED, State.STOPPED)


def test_what_a_service_is_ready_for_is_done_before_others_start(tmp_path: Path) -> None:
    done: list[str] = []
    states_then: list[State] = []

    def prepare(name: str) -> None:
        done.append(name)
        states_then.append(supervisor.services[1].state)

    with Supervisor([_spec("a"), _spec("b", after=("a",))], log_dir=tmp_path, on_ready=prepare) as supervisor:
        supervisor.start()
    assert done == ["a", "b"]
    assert states_then[0] == State.WAITING


def test_services_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    stopped: list[str] = []

    def remember(services: Sequence[Service]) -> None:
        stopped.extend(s.spec.name for s in services if s.state == State.STOPPED and s.spec.name not in stopped)

    with Supervisor([_spec("a"), _spec("b"), _spec("c")], log_dir=tmp_path, on_change=remember) as supervisor:
        supervisor.start()
    assert stopped == ["c", "b", "a"]


def test_a_service_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    program = "import time; time.sleep(.3); print('no such table: x'); raise SystemExit(4)"
    with Supervisor([_spec("good"), _spec("bad", program)], log_dir=tmp_path) as supervisor:
        supervisor.start()
        with pytest.raises(ServiceDied, match=r"bad exited with status 4.*bad\.log:\nno such table: x") as died:
            supervisor.watch()
    assert (died.value.service, died.value.status) == ("bad", 4)
    assert supervisor.services[0].state == State.STOPPED
    assert supervisor.services[1].state == State.DIED


def test_a_service_killed_by_a_signal_is_named_with_the_signal(tmp_path: Path) -> None:
    with Supervisor([_spec("victim")], log_dir=tmp_path) as supervisor:
        supervisor.start()
        assert supervisor.services[0].child is not None
        os.kill(supervisor.services[0].child.pid, signal.SIGKILL)
        with pytest.raises(ServiceDied, match="victim was ended by signal 9"):
            supervisor.watch()


def test_a_service_that_never_becomes_ready_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    late = _spec("late", f"print('still loading', flush=True); {_SLEEP}", probe=Never(tmp_path / "late.log"))
    with (
        pytest.raises(CommandError, match=r"Not ready after 1 s: late(.|\n)*still loading"),
        Supervisor([late], log_dir=tmp_path, start_timeout_s=1.0) as supervisor,
    ):
        supervisor.start()
    assert supervisor.services[0].child is not None
    assert supervisor.services[0].child.exit_status() is not None


def test_a_service_deaf_to_sigterm_is_killed_after_its_time(tmp_path: Path) -> None:
    deaf = _spec("deaf", _STUBBORN, stop_seconds=0.5)
    supervisor = Supervisor([deaf], log_dir=tmp_path)
    supervisor.start()
    child = supervisor.services[0].child
    assert child is not None
    while child.log_tail() != "deaf":
        time.sleep(0.02)
    begun = time.monotonic()
    supervisor.stop()
    assert child.exit_status() == -signal.SIGKILL
    assert time.monotonic() - begun < 5


def test_a_second_signal_while_stopping_kills_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor([_spec("deaf", _STUBBORN, stop_seconds=30.0)], log_dir=tmp_path)
    supervisor.start()
    child = supervisor.services[0].child
    assert child is not None
    while child.log_tail() != "deaf":
        time.sleep(0.02)
    begun = time.monotonic()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    supervisor.stop()
    timer.join()
    assert time.monotonic() - begun < 10


def test_a_taken_port_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        supervisor = Supervisor([_spec("first"), _spec("second", ports=(port,))], log_dir=tmp_path)
        with pytest.raises(CommandError, match=rf"Port {port}, which second needs, is taken.*--port-offset"):
            supervisor.start()
    assert all(service.child is None for service in supervisor.services)


def test_sigterm_interrupts_like_ctrl_c_within_the_block() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), handled((signal.SIGTERM,)):
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
