"""The faults, one function each: what is done to the running stack, and which requests may fail meanwhile."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from tests.faults.event_log import LogUnderTest
from tests.faults.stack import Stack

_CALM_S = 5.0

MayFail = Mapping[str, frozenset[str]]
NOTHING: MayFail = {}
_AWAY = frozenset({"503", "broken stream"})  # refused with a reason, or ended in the middle with an error chunk
_GONE = frozenset({"refused", "cut", "503"})  # 503: back, but its connection to the policy service is not yet


class Stage(Protocol):
    """What a scenario works with."""

    stack: Stack
    log: LogUnderTest

    def fault(self, name: str, may_fail: MayFail = NOTHING) -> AbstractContextManager[None]:
        """The block breaks something and mends it; the fault ends when every service is healthy again."""
        ...

    def learning(self) -> None:
        """Returns in the middle of a round of the trainer, or after some seconds without one."""
        ...


@dataclass(frozen=True)
class Scenario:
    name: str
    title: str
    inject: Callable[[Stage], None]
    logs: Sequence[str] = ("kafka", "sqlite")
    small_disks: bool = False
    stays_ready: bool = False  # the gateway may not even say "not ready"
    serves_unlogged: bool = False  # answers go on while they cannot be recorded, and are counted
    at_least: int = 40  # responses and pieces of feedback accepted, or the scenario shows nothing


def broker_killed(stage: Stage) -> None:
    broker = stage.log.broker
    assert broker is not None
    for number in (1, 2, 3):
        with stage.fault(f"broker killed ({number})"):
            broker.kill()
            stage.stack.pause(4.0)
            broker.start()
        stage.stack.pause(_CALM_S)


def broker_killed_once(stage: Stage) -> None:
    broker = stage.log.broker
    assert broker is not None
    with stage.fault("broker killed"):
        broker.kill()
        stage.stack.pause(3.0)
        broker.start()


def killed(service: str, may_fail: MayFail, times: int = 2) -> Callable[[Stage], None]:
    """`kill -9` of one service, some times."""

    def inject(stage: Stage) -> None:
        for number in range(1, times + 1):
            stage.learning()
            with stage.fault(f"{service} killed ({number})", may_fail):
                stage.stack.kill(service)
                stage.stack.pause(1.0)
            stage.stack.pause(_CALM_S)

    return inject


def network_cut(stage: Stage) -> None:
    link = stage.log.link
    assert link is not None
    with stage.fault("network silent"):
        link.cut()
        stage.stack.pause(14.0)
        link.heal()
    stage.stack.pause(_CALM_S)
    with stage.fault("network resets"):
        link.refuse()
        stage.stack.pause(6.0)
        link.heal()


def slow_link(stage: Stage) -> None:
    link = stage.log.link
    assert link is not None
    with stage.fault("network slow"):
        link.slow(latency_s=0.15, bytes_per_s=48_000)
        stage.stack.pause(20.0)
        link.heal()


def full_outboxes_killed(stage: Stage) -> None:
    """Kills those who hold events that the log has not: while it is away, and while they send on a slow line, so that
    what was under way may or may not have arrived."""
    broker, link = stage.log.broker, stage.log.link
    assert broker is not None
    assert link is not None
    with stage.fault("broker away, policy and gateway killed", _REPLICA_AND_GATEWAY):
        broker.kill()
        stage.stack.pause(5.0)
        stage.stack.kill("policy")
        stage.stack.kill("gateway")
        stage.stack.pause(3.0)
        broker.start()
    stage.stack.pause(_CALM_S)
    for number in (1, 2):
        with stage.fault(f"network slow, policy and gateway killed ({number})", _REPLICA_AND_GATEWAY):
            link.slow(latency_s=0.3, bytes_per_s=24_000)
            stage.stack.pause(4.0)
            stage.stack.kill("policy")
            stage.stack.kill("gateway")
            stage.stack.pause(4.0)
            link.heal()
        stage.stack.pause(_CALM_S)


def spool_full(stage: Stage) -> None:
    """The services' log is taken away too where that is possible: a log that drains would give the disk room."""
    broker = stage.log.broker
    with stage.fault("outbox disk full", {"feedback": frozenset({"503"})}):
        with stage.stack.disks["spool"].full():
            stage.stack.pause(5.0)
            if broker is not None:
                broker.kill()
            stage.stack.pause(8.0)
        if broker is not None:
            broker.start()


def registry_full(stage: Stage) -> None:
    stage.learning()
    with stage.fault("registry disk full"), stage.stack.disks["registry"].full():
        stage.stack.pause(25.0)


_REPLICA = {"chat": _AWAY}
_GATEWAY = dict.fromkeys(("chat", "feedback", "media", "lookup"), _GONE)
_REPLICA_AND_GATEWAY = {**_GATEWAY, "chat": _AWAY | _GONE}
ALL = (
    Scenario("broker", "broker kill -9, three times", broker_killed, ("kafka",), stays_ready=True),
    Scenario("trainer", "trainer kill -9", killed("trainer", NOTHING), stays_ready=True),
    Scenario("gate", "gate kill -9", killed("gate", NOTHING), stays_ready=True),
    Scenario("policy", "policy kill -9", killed("policy", _REPLICA)),
    Scenario("critique", "critique kill -9", killed("critique", NOTHING), stays_ready=True),
    Scenario("decoders", "decoders kill -9", killed("decoders", _REPLICA)),
    Scenario("gateway", "gateway kill -9", killed("gateway", _GATEWAY)),
    Scenario("network", "network cut: silent, then resets", network_cut, ("kafka",), stays_ready=True),
    Scenario("slow-link", "network slow: 150 ms, 48 kB/s", slow_link, ("kafka",), stays_ready=True),
    Scenario("outboxes", "full outboxes: policy, gateway kill -9", full_outboxes_killed, ("kafka",)),
    Scenario("spool-full", "disk full: outboxes", spool_full, small_disks=True, serves_unlogged=True),
    Scenario("registry-full", "disk full: registry", registry_full, small_disks=True, stays_ready=True),
)
QUICK = (
    Scenario("broker", "broker kill -9", broker_killed_once, ("kafka",), stays_ready=True, at_least=20),
    Scenario("policy", "policy kill -9", killed("policy", _REPLICA, times=1), at_least=20),
)
