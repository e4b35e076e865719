"""A whole round: log → join → critique model → pairs → candidate → gate, against scripted services over real gRPC."""

import json

import pytest

from anyloop.log import FEEDBACK, RESPONSES, Event, dlq
from anyloop.registry import checkpoint_events, serving_version
from protos.anyloop.v1 import policy_pb2
from tests.trainer.events import feedback, spoken
from tests.trainer.fake_services import BASE
from tests.trainer.loop import Loop, states
from trainer.clients import ServiceError
from trainer.config import TrainerSettings
from trainer.intake import GROUP
from trainer.learner import should_start
from trainer.rounds import RoundRunner


def test_feedback_becomes_a_promoted_policy(loop: Loop) -> None:
    loop.say(12)
    assert loop.with_gate(loop.learner())

    candidate = "policy-000001"
    assert states(loop.log, "policy")[1:] == [(candidate, "CANDIDATE"), (candidate, "PROMOTED")]
    assert serving_version(loop.log, "critique") == "critique-000001"
    manifest = loop.registry.verify(candidate)
    assert manifest.parent == BASE
    assert manifest.metrics["feedback_ids"] == sorted(f"f{i}" for i in range(12))
    consumed = {topic: sum(parts.values()) for topic, parts in manifest.offsets.items()}
    assert consumed == {f"{GROUP}/{RESPONSES}": 12, f"{GROUP}/{FEEDBACK}": 12}
    assert manifest.gate is not None
    assert manifest.gate["outcome"] == "promoted"
    assert manifest.metrics["pairs_by_origin"] == {"self-improving": 24}  # 12 logged answers and 12 fresh ones
    assert manifest.metrics["critique_right_agreement"] == 1.0

    (line,) = loop.journal("round")
    assert line["outcome"] == "promoted"
    assert line["metrics"]["feedback"] == line["metrics"]["feedback_critique"] == 12
    assert {"examples", "feedback_modelling", "critique_swap", "self_improving", "dpo", "gate", "policy_swap"} == set(
        line["seconds"]
    )


def test_a_wrong_answer_beside_a_right_one_makes_one_pair(loop: Loop) -> None:
    for name, answer, label in (("good", "blue circle", True), ("bad", "green dot", False)):
        event = spoken(loop.sequencer, name, "Draw.", answer)
        loop.log.append(RESPONSES, Event.wrap(event, key=name, source="test", id=name))
        said = feedback(f"f-{name}", name, label=label)
        loop.log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))
    assert loop.learner(gate_timeout_s=0, min_pairs=1, fresh_per_prompt=0).once()
    metrics = loop.registry.manifest("policy-000001").metrics
    assert metrics["pairs_by_origin"] == {"verdict": 1}


def test_the_trainers_own_requests_are_unlogged_pinned_and_concurrent(loop: Loop) -> None:
    loop.say(12)
    loop.services.unavailable = 2  # tried again, not lost
    assert loop.learner(gate_timeout_s=0).once()
    asked = loop.services.generated
    assert all(request.unlogged and request.tokens_only and request.prompt_token_ids for request in asked)
    assert {request.policy_version for request in asked} == {BASE}
    assert loop.services.most_running > 4


def test_a_ppo_round_samples_from_staged_weights_and_leaves_none_behind(loop: Loop) -> None:
    loop.say(8)
    assert loop.learner(algorithm="ppo", gate_timeout_s=0).once()
    pins = {request.policy_version for request in loop.services.generated}
    staged = pins - {BASE}
    assert len(staged) == 1  # two turns: the first samples from the serving weights
    assert all(version.startswith("policy-rollout-") for version in staged)
    assert loop.services.resident == {BASE}
    assert loop.registry.versions("policy") == [BASE, "policy-000001"]
    metrics = loop.registry.manifest("policy-000001").metrics
    assert metrics["ppo_turns"] == 2
    assert metrics["reward_accuracy"] is not None


def test_nothing_new_is_no_round(loop: Loop) -> None:
    assert loop.learner().once() is False
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once() is True
    assert loop.learner(gate_timeout_s=0).once() is False


def test_poison_goes_to_the_dead_letters_and_the_rest_is_used(loop: Loop) -> None:
    good = Event.wrap(feedback("f", "r"), key="k", source="test")
    loop.log.append(FEEDBACK, Event("bad", "test", good.type, good.time, "k", b"\xff\xff\xff"))
    loop.log.append(FEEDBACK, Event.wrap(policy_pb2.GenerateRequest(), key="k", source="test"))
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    assert len(list(loop.log.read(dlq(FEEDBACK)))) == 2
    assert loop.registry.manifest("policy-000001").metrics["feedback"] == 6


def test_feedback_is_not_given_up_while_a_service_is_away(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(6)
    failed = 0

    def away(self: RoundRunner, claimed: object) -> str:
        nonlocal failed
        failed += 1
        raise ServiceError("UNAVAILABLE: connection refused", retriable=True, away=True)

    with monkeypatch.context() as broken:
        broken.setattr(RoundRunner, "run", away)
        with pytest.raises(ServiceError):
            loop.learner(round_attempts=3).once()
    assert failed == 3
    assert loop.learner(gate_timeout_s=0, round_attempts=3).once()
    assert loop.registry.manifest("policy-000001").metrics["feedback"] == 6


def test_a_round_that_fails_by_its_own_fault_is_closed_and_the_next_goes_on(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)

    def broken(self: RoundRunner, claimed: object) -> str:
        raise ZeroDivisionError("poison")

    with monkeypatch.context() as patch:
        patch.setattr(RoundRunner, "run", broken)
        assert loop.learner(round_attempts=2).once()
    assert [line["reason"] for line in loop.journal("failure")] == ["poison", "poison"]
    loop.say(5)
    assert loop.learner(gate_timeout_s=0).once()
    assert loop.registry.manifest("policy-000001").metrics["feedback"] == 5


def test_a_lost_state_is_rebuilt_without_using_anything_twice(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    loop.process.close()
    for path in (loop.home / "trainer").glob("state.db*"):
        path.unlink()
    loop.say(5)
    assert loop.learner(gate_timeout_s=0).once()
    assert loop.registry.manifest("policy-000002").metrics["feedback_ids"] == sorted(f"f{i}" for i in range(6, 11))


def test_a_candidate_that_gains_nothing_is_rejected_and_unloaded(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    gate = loop.gate(min_gain=1.0)  # 0 % to 100 % is not above 100 %
    event = gate.next_candidate()
    assert event is not None
    decision = gate.decide(event)
    assert not decision.promote
    assert loop.services.resident == {BASE}
    assert gate.next_candidate() is None
    last = [event for _, event in checkpoint_events(loop.log, "policy")][-1]
    assert "not above +100.0%" in last.reason
    report = json.loads(last.report_json)
    assert report["subtasks"] == {"T2T": {"before": 0.0, "after": 1.0}}
    assert report["serving"] == BASE


def test_the_gate_rejects_a_damaged_candidate_without_loading_it(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    weights = loop.registry.path("policy-000001") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    gate = loop.gate()
    event = gate.next_candidate()
    assert event is not None
    assert "not whole: policy-000001: model.safetensors" in gate.decide(event).reason
    assert serving_version(loop.log, "policy") == BASE


def test_the_gate_rejects_what_the_replica_refuses(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    loop.services.refuse_staging = "shapes differ"
    gate = loop.gate()
    event = gate.next_candidate()
    assert event is not None
    assert "shapes differ" in gate.decide(event).reason


def test_overtaken_candidates_are_rejected_by_name(loop: Loop) -> None:
    for _ in range(2):
        loop.say(6)
        assert loop.learner(gate_timeout_s=0).once()
    event = loop.gate().next_candidate()
    assert event is not None
    assert event.version == "policy-000002"
    assert ("policy-000001", "REJECTED") in states(loop.log, "policy")


@pytest.mark.parametrize(
    ("ready", "quiet", "waited", "start"),
    [(0, 99, 9999, False), (64, 5, 0, True), (64, 4.9, 0, False), (63, 99, 0, False), (1, 0, 600, True)],
)
def test_when_a_round_starts(ready: int, quiet: float, waited: float, start: bool) -> None:
    settings = TrainerSettings(min_feedback=64, quiet_s=5, max_wait_s=600)
    assert should_start(ready, quiet, waited, settings) is start
