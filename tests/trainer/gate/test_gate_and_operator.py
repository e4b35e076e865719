"""An operator promotes or rolls back while the gate is at work: the operator's word stands."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from anyloop.registry import announce, serving_version
from protos.anyloop.v1 import events_pb2
from tests.trainer.fake_services import BASE
from tests.trainer.loop import Loop, states
from trainer.gate import service
from trainer.gate.decision import Decision
from trainer.gate.service import Gate

CANDIDATE = "policy-000001"


@pytest.fixture
def gate(loop: Loop) -> Gate:
    """Before a candidate that answers better than the base."""
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    return loop.gate()


def waiting(gate: Gate) -> events_pb2.CheckpointEvent:
    event = gate.next_candidate()
    assert event is not None
    return event


def by_operator(loop: Loop, version: str, reason: str = "freeze") -> None:
    announce(loop.log, "policy", version, "promoted", reason=reason, decided_by="anna")


def before(function: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    """`function`, with `act` done once just before its first call returns."""
    done: list[bool] = []

    def wrapped(*args: Any, **options: Any) -> Any:
        found = function(*args, **options)
        if not done:
            done.append(True)
            act()
        return found

    return wrapped


@pytest.mark.parametrize("step", ["evaluate", "decide"])
def test_a_candidate_that_an_operator_promotes_meanwhile_stays_promoted(
    loop: Loop, gate: Gate, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = waiting(gate)
    promote = partial(by_operator, loop, CANDIDATE, "looks good")
    monkeypatch.setattr(service, step, before(getattr(service, step), promote))
    assert gate.decide(event) == Decision(True, "decided by anna: looks good")
    assert states(loop.log, "policy")[-1] == (CANDIDATE, "PROMOTED")
    assert (CANDIDATE, "REJECTED") not in states(loop.log, "policy")
    assert loop.registry.manifest(CANDIDATE).gate is None
    assert CANDIDATE in loop.services.resident


def test_a_rollback_during_the_decision_is_not_overridden_by_the_comparison_before_it(
    loop: Loop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    event = waiting(gate)
    by_operator(loop, CANDIDATE)
    monkeypatch.setattr(service, "decide", before(service.decide, partial(by_operator, loop, BASE)))
    gate.decide(event)
    manifest = loop.registry.manifest(event.version)
    assert manifest.gate is not None
    assert manifest.gate["serving"] == BASE


def test_a_damaged_candidate_that_was_promoted_is_not_announced_as_rejected(loop: Loop, gate: Gate) -> None:
    event = waiting(gate)
    by_operator(loop, CANDIDATE)
    weights = loop.registry.path(CANDIDATE) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert gate.decide(event).promote
    assert serving_version(loop.log, "policy") == CANDIDATE
    assert states(loop.log, "policy")[-1] == (CANDIDATE, "PROMOTED")


def test_an_overtaken_candidate_that_an_operator_promotes_meanwhile_is_not_rejected(
    loop: Loop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    undecided = gate._announcements.undecided
    monkeypatch.setattr(gate._announcements, "undecided", before(undecided, partial(by_operator, loop, CANDIDATE)))
    assert waiting(gate).version == "policy-000002"
    assert (CANDIDATE, "REJECTED") not in states(loop.log, "policy")


def test_what_a_second_gate_has_rejected_leaves_the_replica_and_is_not_promoted(
    loop: Loop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = waiting(gate)

    reject = partial(announce, loop.log, "policy", CANDIDATE, "rejected", reason="worse", decided_by="gate")
    monkeypatch.setattr(service, "decide", before(service.decide, reject))
    assert gate.decide(event) == Decision(False, "decided by gate: worse")
    assert states(loop.log, "policy")[-1] == (CANDIDATE, "REJECTED")
    assert loop.services.resident == {BASE}
