"""The services of one machine as real processes, under a supervisor that starts anew what dies, as a cluster does."""

import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from anyloop.cli.child import Child
from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import Service, State, Supervisor
from anyloop.cli.topology import one_machine
from anyloop.cli.up import prepare_home
from anyloop.config import Settings
from tests.faults.event_log import LogUnderTest
from tests.faults.small_disk import SmallDisk

_TEND_S = 0.1
_RESTART_AFTER_S = 1.0
_LOOK_S = 1.0  # between two looks at /ready and at the outboxes
_MANY_DEATHS = 8  # of a scenario, after which it is over
MAX_WAIT_S = 4.0  # longest that a piece of feedback waits for a round
# Rounds of seconds: every piece of feedback brings a pair of its own (a refinement), so that every round ends in a
# candidate, and the gate takes any candidate, so that swaps go on under the faults.
_SMALL_ROUNDS = {
    "ANYLOOP_TRAINER_MIN_FEEDBACK": "6",
    "ANYLOOP_TRAINER_QUIET_S": "0.5",
    "ANYLOOP_TRAINER_MAX_WAIT_S": str(MAX_WAIT_S),
    "ANYLOOP_TRAINER_POLL_S": "0.3",
    "ANYLOOP_TRAINER_RETRY_S": "1",
    "ANYLOOP_TRAINER_MIN_PAIRS": "1",
    "ANYLOOP_TRAINER_CRITIQUE_EPOCHS": "1",
    "ANYLOOP_TRAINER_CRITIQUE_PROBE": "0",
    "ANYLOOP_TRAINER_CRITIQUE_REPLAY": "0",
    "ANYLOOP_TRAINER_DPO_EPOCHS": "1",
    "ANYLOOP_TRAINER_FILTER": "none",
    "ANYLOOP_TRAINER_FRESH_PER_PROMPT": "0",
    "ANYLOOP_TRAINER_MAX_PAIRS": "100000",  # what is claimed as learned is learned: the audit counts the pairs
    "ANYLOOP_TRAINER_MAX_ANSWER_TOKENS": "24",
    "ANYLOOP_TRAINER_MAX_CRITIQUE_TOKENS": "16",
    "ANYLOOP_TRAINER_MAX_VERSIONS_BEHIND": "1000",
    "ANYLOOP_TRAINER_KEEP_CHECKPOINTS": "1000",
    "ANYLOOP_TRAINER_GATE_TIMEOUT_S": "60",
    "ANYLOOP_TRAINER_CONCURRENCY": "4",
    "ANYLOOP_GATE_MIN_GAIN": "-1",
    "ANYLOOP_GATE_MAX_LOSS": "1",
    "ANYLOOP_GATE_SUBTASK_BOUND": "1",
    "ANYLOOP_GATE_MAX_ERRORS": "1",
    "ANYLOOP_GATE_RESAMPLES": "100",
    "ANYLOOP_GATE_MAX_TOKENS": "24",
    "ANYLOOP_GATE_RETRY_S": "1",
    "ANYLOOP_ENGINE_SLOTS": "8",
}


class Stack:
    """`with Stack(home, model, log, ...) as stack: stack.kill("policy"); stack.pause(3)`.

    Nothing runs behind the caller's back: `pause` is where the dead are noticed and started anew.
    """

    def __init__(
        self, home: Path, model: Path, log: LogUnderTest, *, host: str, port_offset: int, small_disks: bool
    ) -> None:
        url, self.direct_url = log.urls(home)
        self.settings = Settings(home=home, model_dir=model, host=host, log_url=url)  # type: ignore[arg-type]
        self._direct = self.settings.model_copy(update={"log_url": self.direct_url})
        topology = one_machine(self.settings, port_offset=port_offset, gate_suite="tests.faults.gate_suite:one_of_each")
        # Set here, whatever a developer's own environment says.
        environment = {**_SMALL_ROUNDS, "ANYLOOP_LOG_URL": url, "ANYLOOP_MEDIA_URL": ""}
        self._specs = [replace(spec, env={**spec.env, **environment}) for spec in topology.services]
        self.url, self._urls = topology.gateway_url, topology.urls
        self.disks = (
            {"spool": SmallDisk(home / "spool", 16), "registry": SmallDisk(home / "registry", 64)}
            if small_disks
            else {}
        )
        self._supervisor = Supervisor(self._specs, log_dir=home / "logs")
        self._killed: set[int] = set()
        self._back_at: dict[str, float] = {}
        self.not_ready: list[str] = []  # what a running gateway said on /ready, each second that it was not
        self.peak_outbox_bytes = 0.0  # the most that waited for the log in one outbox, since somebody set it to 0
        self.slowest_ready_s = 0.0  # of the answers to /ready, since somebody set it to 0
        self._looked = 0.0
        self.died: list[str] = []  # services that ended by themselves, with the end of their log
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.settings.home.mkdir(parents=True, exist_ok=True)
            for disk in self.disks.values():
                stack.enter_context(disk)
            prepare_home(self._direct)
            stack.enter_context(self._supervisor)
            self._supervisor.start()
            self._exits = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._exits.close()

    def kill(self, name: str) -> None:
        """`kill -9` of the service's own process. It is started anew a second later."""
        child = self._service(name).child
        assert child is not None
        self._killed.add(child.pid)
        os.kill(child.pid, signal.SIGKILL)
        self._tend()

    def pause(self, seconds: float) -> None:
        """Lets time pass, and looks after the services meanwhile."""
        self.wait_until(lambda: False, seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """As `pause`, but ends as soon as `condition` holds; false when it did not within `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            self._tend()
            if time.monotonic() > deadline:
                return False
            time.sleep(_TEND_S)
        return True

    def healthy(self) -> bool:
        """Whether every service runs and says that it is ready."""
        return all(s.state == State.READY and s.spec.probe.ready() for s in self._supervisor.services)

    def await_healthy(self, seconds: float) -> None:
        """Raises CommandError, with the ends of the logs, when that takes longer."""
        if not self.wait_until(self.healthy, seconds):
            ill = [s for s in self._supervisor.services if s.state != State.READY or not s.spec.probe.ready()]
            said = "\n".join(f"The end of {s.child.log}:\n{s.child.log_tail()}" for s in ill if s.child)
            raise CommandError(f"Not healthy after {seconds:.0f} s: {', '.join(s.spec.name for s in ill)}. {said}")

    def metric(self, service: str, name: str) -> float:
        """The sum over the labels of a metric of the policy or the gateway; 0 where there is none of that name, or
        nobody to ask."""
        url = f"{self.url}/metrics" if service == "gateway" else self._urls[f"metrics ({service})"]
        try:
            text = httpx.get(url, timeout=5.0, trust_env=False).text
        except httpx.HTTPError:
            return 0.0
        samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
        return sum(sample.value for sample in samples if sample.name == name)

    def _service(self, name: str) -> Service:
        return next(service for service in self._supervisor.services if service.spec.name == name)

    def _tend(self) -> None:
        for service in self._supervisor.services:
            child, name = service.child, service.spec.name
            status = child.exit_status() if child else None
            if child is not None and status is not None:
                if name not in self._back_at:
                    self._back_at[name] = time.monotonic() + _RESTART_AFTER_S
                    service.state = State.DIED
                    if child.pid not in self._killed:
                        self.died.append(f"{name} ended by itself with status {status}: {child.log_tail(5)}")
                        if len(self.died) > _MANY_DEATHS:
                            raise CommandError(f"{name} ends again and again; see {child.log}")
                elif time.monotonic() >= self._back_at[name]:
                    del self._back_at[name]
                    service.child = Child(service.spec.argv, {**os.environ, **service.spec.env}, child.log)
                    service.state = State.STARTING
            elif service.state == State.STARTING and service.spec.probe.ready():
                service.state = State.READY
        if time.monotonic() > self._looked + _LOOK_S and self._service("gateway").state == State.READY:
            self._looked = time.monotonic()
            self._ask_ready()
            waiting = [self.metric(name, "anyloop_log_spool_bytes") for name in ("policy", "gateway")]
            self.peak_outbox_bytes = max(self.peak_outbox_bytes, *waiting)

    def _ask_ready(self) -> None:
        begun = time.monotonic()
        try:
            answer = httpx.get(f"{self.url}/ready", timeout=5.0, trust_env=False)
        except httpx.HTTPError as error:
            self.not_ready.append(f"no answer ({type(error).__name__})")
        else:
            if not answer.is_success:
                self.not_ready.append(answer.text)
        self.slowest_ready_s = max(self.slowest_ready_s, time.monotonic() - begun)
