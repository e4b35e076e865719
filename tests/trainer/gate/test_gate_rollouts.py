"""With ANYLOOP_GATE_PROMOTION=rollout the gate approves, and something else promotes."""

import threading
from functools import partial

import pytest

from anyloop.audit import audit_events
from anyloop.registry import announce, serving_version
from tests.trainer.fake_services import BASE
from tests.trainer.loop import Loop, states
from trainer.gate import service
from trainer.gate.decision import Decision
from trainer.gate.service import Gate

FIRST, SECOND = "policy-000001", "policy-000002"


@pytest.fixture
def gate(loop: Loop) -> Gate:
    """Before a candidate that answers better than the base."""
    candidate(loop)
    return loop.gate(promotion="rollout")


def candidate(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()


def decide_next(gate: Gate) -> Decision:
    event = gate.next_candidate()
    assert event is not None
    return gate.decide(event)


def test_what_passes_is_approved_and_does_not_serve(loop: Loop, gate: Gate) -> None:
    assert decide_next(gate).promote
    assert states(loop.log, "policy")[-1] == (FIRST, "APPROVED")
    assert serving_version(loop.log, "policy") == BASE
    manifest = loop.registry.manifest(FIRST)
    assert manifest.gate is not None
    assert (manifest.gate["outcome"], manifest.gate["serving"]) == ("approved", BASE)
    assert FIRST in loop.services.resident, "the pool that learns keeps it for the comparison with the next one"
    assert gate.next_candidate() is None
    trail = [(one.action, one.subject, one.actor) for _, one in audit_events(loop.log)]
    assert trail[-1] == ("approve", FIRST, "gate")


def test_what_fails_is_rejected_as_ever(loop: Loop) -> None:
    candidate(loop)
    assert not decide_next(loop.gate(promotion="rollout", min_gain=2.0)).promote
    assert states(loop.log, "policy")[-1] == (FIRST, "REJECTED")


def test_a_gate_killed_before_its_approval_was_announced_announces_it_once(
    loop: Loop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(service, "announce", killed)
        with pytest.raises(KeyboardInterrupt):
            decide_next(gate)
    evaluated = len(loop.services.generated)
    again = loop.gate(promotion="rollout")
    assert decide_next(again).promote
    assert again.next_candidate() is None
    assert [state for version, state in states(loop.log, "policy") if version == FIRST] == ["CANDIDATE", "APPROVED"]
    assert len(loop.services.generated) == evaluated, "the recorded decision stands: nothing is evaluated again"


def test_the_next_candidate_must_beat_the_version_in_its_rollout(loop: Loop, gate: Gate) -> None:
    assert decide_next(gate).promote
    candidate(loop)
    decide_next(gate)
    report = loop.registry.manifest(SECOND).gate
    assert report is not None
    assert report["serving"] == FIRST


def test_an_approval_left_over_from_rollouts_is_said_and_no_measure_for_direct_promotion(
    loop: Loop, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody rolls it out any more: measured against it, a version better than what serves might never come in."""
    assert decide_next(gate).promote
    candidate(loop)
    direct = loop.gate()
    stop = threading.Event()
    thread = threading.Thread(target=direct.run, args=(stop,))
    thread.start()
    while loop.registry.manifest(SECOND).gate is None:
        assert thread.is_alive()
        stop.wait(0.05)
    stop.set()
    thread.join(30)
    report = loop.registry.manifest(SECOND).gate
    assert report is not None
    assert report["serving"] == BASE
    assert any(f"anyloop checkpoints promote {FIRST}" in line for line in caplog.messages)


def test_a_rollback_of_the_rollout_meanwhile_makes_the_gate_compare_again(
    loop: Loop, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decide_next(gate).promote
    candidate(loop)
    decide, rolled_back = service.decide, []

    def and_roll_back(*arguments: object) -> Decision:
        if not rolled_back:
            rolled_back.append(True)
            announce(loop.log, "policy", FIRST, "rejected", reason="errors", decided_by="rollout/prod/main")
        return decide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "decide", and_roll_back)
    decide_next(gate)
    report = loop.registry.manifest(SECOND).gate
    assert report is not None
    assert report["serving"] == BASE


def test_what_a_rollout_has_rejected_leaves_the_replica_before_the_next_comparison(loop: Loop, gate: Gate) -> None:
    assert decide_next(gate).promote
    announce(loop.log, "policy", FIRST, "rejected", reason="errors", decided_by="rollout/prod/main")
    candidate(loop)
    assert decide_next(gate).promote
    assert loop.services.resident == {BASE, SECOND}


@pytest.mark.parametrize("state", ["approved", "promoted"])
def test_what_another_has_let_pass_meanwhile_is_not_said_again(
    loop: Loop, gate: Gate, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An approval after the promotion would, once the topic is compacted, take away what serves."""
    decide = service.decide

    def meanwhile(*arguments: object) -> Decision:
        partial(announce, loop.log, "policy", FIRST, state, decided_by="rollout/prod/main", reason="2 replicas")()
        return decide(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(service, "decide", meanwhile)
    assert decide_next(gate) == Decision(True, "decided by rollout/prod/main: 2 replicas")
    assert states(loop.log, "policy")[-1] == (FIRST, state.upper())


def test_a_decision_recorded_under_the_other_setting_still_holds(loop: Loop) -> None:
    candidate(loop)
    loop.registry.record_gate(FIRST, {"outcome": "promoted", "reason": "+20 %", "serving": BASE})
    assert decide_next(loop.gate(promotion="rollout")) == Decision(True, "+20 %")
    assert states(loop.log, "policy")[-1] == (FIRST, "APPROVED")
