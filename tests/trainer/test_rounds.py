"""A whole round: log → join → critique model → pairs → candidate → gate, against scripted services over real gRPC."""

import errno
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from prometheus_client import REGISTRY

from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, LogError, dlq
from anyloop.registry import Registry, announce, checkpoint_events, serving_version
from protos.anyloop.v1 import policy_pb2, types_pb2
from tests.trainer.events import feedback, spoken
from tests.trainer.fake_services import BASE
from tests.trainer.loop import Loop, states
from trainer.algorithms.ppo import train_ppo
from trainer.candidate import CandidateMaker
from trainer.clients import ServiceError
from trainer.config import TrainerSettings
from trainer.intake import GROUP
from trainer.join_store import JoinStore
from trainer.learner import Learner, should_start
from trainer.rounds import RoundRunner
from trainer.trained import Trained


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
    shown = REGISTRY.get_sample_value("anyloop_trainer_logprob_mismatch", {"kind": "max"})
    assert shown == pytest.approx(metrics["ppo_mismatch_max_first"])


def test_a_grpo_round_asks_each_prompt_as_often_as_its_group(loop: Loop) -> None:
    loop.say(8)
    options = {"grpo_prompts": 2, "grpo_group": 3, "grpo_iterations": 2, "grpo_batch": 1}
    rewards = {"reward_view": "critique", "reward_start": "critique"}
    assert loop.learner(algorithm="grpo", gate_timeout_s=0, **options, **rewards).once()
    staged = [one for one in loop.services.generated if one.policy_version.startswith("policy-rollout-")]
    assert sorted(Counter(tuple(one.prompt_token_ids) for one in staged).values()) == [3, 3]
    assert len({one.sampling.seed for one in staged}) == 6
    assert loop.services.resident == {BASE}
    metrics = loop.registry.manifest("policy-000001").metrics
    assert metrics["grpo_turns"] == 2
    assert "grpo_mismatch_max_first" in metrics


def test_ppo_may_learn_from_the_answers_that_users_got(loop: Loop) -> None:
    loop.say(8)
    asked = len(loop.services.generated)
    assert loop.learner(algorithm="ppo", ppo_source="logged", gate_timeout_s=0).once()
    assert not [one for one in loop.services.generated[asked:] if one.policy_version.startswith("policy-rollout-")]
    metrics = loop.registry.manifest("policy-000001").metrics
    assert metrics["ppo_turns"] == 2
    assert metrics["ppo_length_first"] > 1


def test_logged_answers_that_cannot_teach_make_no_candidate(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    loop.say(8, temperature=0.5)
    loop.learner(algorithm="ppo", ppo_source="logged", gate_timeout_s=0).once()
    assert loop.registry.versions("policy") == [BASE]
    assert "no answer to learn from: {'logged_answer_of_another_distribution': 8}" in caplog.text
    (line,) = loop.journal("round")
    assert line["outcome"] == "no candidate: no answer that the policy could learn from"
    assert line["metrics"]["left_out"]["logged_answer_of_another_distribution"] == 8
    loop.process.close()
    with closing(JoinStore(loop.home / "trainer" / "state.db")) as store:
        assert store._db.rows("SELECT count(*) FROM pairs") == [(0,)]  # where its feedback counts again, so do they


def test_logged_answers_set_the_length_of_ppos_schedule(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[object] = []

    def train(*args: object, **local: object) -> Trained:
        planned.append(args[-1])
        return train_ppo(*args, **local)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.policy_update.train_ppo", train)
    loop.say(7)
    assert loop.learner(algorithm="ppo", ppo_source="logged", gate_timeout_s=0).once()
    assert planned == [[4, 3]]
    loop.say(7)
    assert loop.learner(algorithm="ppo", ppo_source="both", gate_timeout_s=0, stale="downweight").once()
    assert planned[1:] == [[4 + 8, 3 + 8]]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_round_whose_answers_all_fail_is_tried_again_and_never_publishes_its_parent(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    async def none(*_: object) -> list:
        return []

    loop.say(6)
    options = {"algorithm": algorithm, "gate_timeout_s": 0, "round_attempts": 2, "critique_epochs": 0}
    monkeypatch.setattr("trainer.policy_update.sample_rollouts", none)
    assert loop.learner(**options).once()
    assert loop.registry.versions("policy") == [BASE]
    assert [line["reason"] for line in loop.journal("failure")] == [
        "no sampled answer could be learned from: none came back whole"
    ] * 2


def test_prompts_and_answers_that_are_too_long_to_train_on_are_counted(loop: Loop) -> None:
    loop.say(6)
    options = {"algorithm": "ppo", "gate_timeout_s": 0, "critique_epochs": 0, "min_pairs": 1}
    assert loop.learner(**options, max_tokens=384).once()
    long = " ".join(["Draw it."] * 30)
    event = spoken(loop.sequencer, "long", long, "red square")
    said = feedback("f-long", "long", critique="It should be a blue circle.")
    loop.log.append(RESPONSES, Event.wrap(event, key="long", source="test", id="long"))
    loop.log.append(FEEDBACK, Event.wrap(said, key="long", source="test", id="f-long"))
    loop.say(6)
    assert loop.learner(**options, max_tokens=len(event.prompt_token_ids), max_versions_behind=9).once()
    lines = loop.journal("round")
    prompts = {tuple(one.prompt_token_ids) for one in loop.services.generated if "rollout" in one.policy_version}
    assert tuple(event.prompt_token_ids) not in prompts
    assert "too_long" not in lines[0]["metrics"]["left_out"]
    assert lines[1]["metrics"]["left_out"]["too_long"] >= 3  # two pairs, one prompt


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


def test_late_feedback_is_joined_left_out_or_set_aside_as_the_settings_say(loop: Loop) -> None:
    answer = spoken(loop.sequencer, "r", "Draw.", "red square", created=1_000)
    loop.log.append(RESPONSES, Event.wrap(answer, key="r", source="test", id="r"))
    late = feedback("late", "r", critique="It should be red.", created=1_001 + 3_600_000)
    loop.log.append(FEEDBACK, Event.wrap(late, key="r", source="test", id="late"))
    before = REGISTRY.get_sample_value("anyloop_trainer_left_out_total", {"reason": "late"}) or 0
    window = {"join_window_h": 1.0, "gate_timeout_s": 0, "min_pairs": 1}

    assert not loop.learner(late_feedback="drop", home="dropping", **window).once()
    assert REGISTRY.get_sample_value("anyloop_trainer_left_out_total", {"reason": "late"}) == before + 1
    assert list(loop.log.read(dlq(FEEDBACK))) == []

    assert not loop.learner(late_feedback="dead_letter", home="setting_aside", **window).once()
    (letter,) = loop.log.read(dlq(FEEDBACK))
    assert letter.event.id == "late"
    assert letter.event.unwrap() == late
    assert letter.event.key == "r"
    said = letter.event.extensions
    assert said["dlqreason"] == "late feedback: it came more than 1 hours after its response"
    (origin,) = loop.log.read(FEEDBACK)
    assert (said["dlqpartition"], said["dlqoffset"]) == (str(origin.partition), str(origin.offset))

    # Put back by an operator who takes late feedback now, it counts in the state that had set it aside.
    back = replace(letter.event, extensions={"dlqreplays": "1"})
    loop.log.append(FEEDBACK, back)
    assert loop.learner(late_feedback="join", home="setting_aside", **window).once()
    assert loop.registry.manifest("policy-000001").metrics["feedback_ids"] == ["late"]


def test_feedback_without_a_response_waits_for_the_window_and_not_longer(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = feedback("early", "r0", critique="It should be a blue circle.")
    loop.log.append(FEEDBACK, Event.wrap(early, key="r0", source="test", id="early"))
    lost = feedback("lost", "nowhere", critique="no")
    loop.log.append(FEEDBACK, Event.wrap(lost, key="nowhere", source="test", id="lost"))
    options = {"late_feedback": "dead_letter", "join_window_h": 1.0, "gate_timeout_s": 0}
    assert not loop.learner(**options).once()
    loop.say(3)
    assert loop.learner(**options).once()
    assert loop.registry.manifest("policy-000001").metrics["feedback_ids"] == ["early", "f0", "f1", "f2"]
    assert list(loop.log.read(dlq(FEEDBACK))) == []
    real = time.time
    with monkeypatch.context() as later:
        later.setattr("trainer.learner.time.time", lambda: real() + 3601)
        assert not loop.learner(**options).once()
    (letter,) = loop.log.read(dlq(FEEDBACK))
    assert letter.event.id == "lost"
    assert "found within 1 hours no trace of its response" in letter.event.extensions["dlqreason"]
    assert not loop.learner(**options).once()
    assert len(list(loop.log.read(dlq(FEEDBACK)))) == 1


class Killed(BaseException):
    """Stands for kill -9: nothing between here and the operating system may handle it."""


def stop_before_publishing(learner: Learner, monkeypatch: pytest.MonkeyPatch, lineage: str) -> None:
    """Runs a round up to where it would publish a version of `lineage`, and leaves it open."""
    real = CandidateMaker._publish

    def dying(self: CandidateMaker, of: str, *arguments: object) -> object:
        if of == lineage:
            raise Killed
        return real(self, of, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(CandidateMaker, "_publish", dying)
        with pytest.raises(Killed):
            learner.once()


def used_by(loop: Loop, lineage: str) -> list[list[str]]:
    return [loop.registry.manifest(name).metrics["feedback_ids"] for name in loop.registry.versions(lineage)[1:]]


@pytest.mark.parametrize("killed_before", ["critique", "policy"])
def test_a_round_whose_feedback_another_trainer_used_meanwhile_is_superseded(
    loop: Loop, monkeypatch: pytest.MonkeyPatch, killed_before: str
) -> None:
    loop.say(6)
    stop_before_publishing(loop.learner(gate_timeout_s=0, home="first"), monkeypatch, killed_before)
    assert loop.learner(gate_timeout_s=0, home="second").once()
    assert loop.learner(gate_timeout_s=0, home="first").once()
    names = [f"f{i}" for i in range(6)]
    assert used_by(loop, "policy") == [names]
    assert used_by(loop, "critique") == [names]
    (line,) = loop.journal("round", home="first")
    assert line["outcome"] == "superseded: other checkpoints used all of its feedback"


def test_a_round_goes_on_with_what_no_other_trainer_used(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(6)
    stop_before_publishing(loop.learner(gate_timeout_s=0, home="first"), monkeypatch, "critique")
    assert loop.learner(gate_timeout_s=0, home="second", max_feedback=2).once()
    assert loop.learner(gate_timeout_s=0, home="first").once()
    assert used_by(loop, "policy") == [["f0", "f1"], ["f2", "f3", "f4", "f5"]]
    assert used_by(loop, "critique") == [["f0", "f1"], ["f2", "f3", "f4", "f5"]]
    assert loop.learner(gate_timeout_s=0, home="second").once() is False


def test_what_a_lost_state_had_published_of_the_critique_model_is_not_taught_again(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)
    stop_before_publishing(loop.learner(gate_timeout_s=0, home="lost"), monkeypatch, "policy")
    assert loop.learner(gate_timeout_s=0, home="new").once()
    names = [f"f{i}" for i in range(6)]
    assert used_by(loop, "critique") == [names]
    assert used_by(loop, "policy") == [names]


def test_used_feedback_counts_once_although_its_version_was_deleted(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    loop.registry.delete("policy-000001")
    loop.say(5)
    assert loop.learner(gate_timeout_s=0, home="rebuilt").once()
    assert used_by(loop, "policy") == [[f"f{i}" for i in (10, 6, 7, 8, 9)]]


def turns(learner: Learner, count: int) -> None:
    """Of the loop that runs until it is stopped."""
    stop = threading.Event()
    for _ in range(count):
        learner._turn(stop)


EAGER = {"min_feedback": 1, "quiet_s": 0, "poll_s": 0.05, "gate_timeout_s": 0}


def test_feedback_that_makes_too_few_pairs_waits_for_more_and_is_learned_then(loop: Loop) -> None:
    loop.say(2)
    learner = loop.learner(min_pairs=10, **EAGER)
    turns(learner, 6)
    assert [line["outcome"] for line in loop.journal("round")] == ["no candidate: too few pairs"]  # not six rounds
    assert [line["feedback"] for line in loop.journal("gave_back")] == [2]
    loop.say(4)
    turns(learner, 6)
    assert used_by(loop, "policy") == [[f"f{i}" for i in range(6)]]


def test_a_round_that_cannot_grow_is_closed_and_does_not_stand_in_the_way(loop: Loop) -> None:
    loop.say(2)
    learner = loop.learner(min_pairs=6, max_feedback=2, fresh_per_prompt=1, **EAGER)
    turns(learner, 3)
    loop.say(1)
    turns(learner, 6)
    outcomes = [line["outcome"] for line in loop.journal("round")]
    assert outcomes == ["no candidate: too few pairs"] * 3
    assert [line["feedback"] for line in loop.journal("gave_back")] == [2, 1]  # the first two were closed in between


def test_what_is_beyond_max_pairs_is_counted_and_peoples_own_pairs_are_not_cut_for_machine_made_ones(
    loop: Loop,
) -> None:
    loop.say(4)
    for number in range(3):
        name = f"own{number}"
        answer = spoken(loop.sequencer, name, f"Own {number}.", "red square")
        better = [types_pb2.ContentPart(text="blue circle")]
        said = feedback(f"f-{name}", name, refinement=better, created=9000)  # the last of all
        loop.log.append(RESPONSES, Event.wrap(answer, key=name, source="test", id=name))
        loop.log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))
    assert loop.learner(gate_timeout_s=0, max_pairs=3).once()
    metrics = loop.registry.manifest("policy-000001").metrics
    assert metrics["pairs_by_origin"] == {"refinement": 3}
    assert metrics["left_out"]["beyond_max_pairs"] == 14  # two machine-made ones of each of the seven answers


def test_old_events_are_pruned_although_no_round_ends(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(2)
    learner = loop.learner(min_feedback=100, poll_s=0.05, retention_days=1e-6, join_window_h=1e-5)
    turns(learner, 3)
    monkeypatch.setattr("trainer.learner._PRUNE_EVERY_S", 0.0)
    answer = spoken(loop.sequencer, "silent", "Draw.", "red square")
    loop.log.append(RESPONSES, Event.wrap(answer, key="silent", source="test", id="silent"))
    deadline = time.monotonic() + 10
    turns(learner, 1)
    while learner._store.counts()["responses"] > 2:  # those that feedback waits for stay
        assert time.monotonic() < deadline
        turns(learner, 1)
    assert learner._store.ready()[0] == 2


def test_a_response_is_kept_for_the_join_window_where_that_is_longer_than_retention(loop: Loop) -> None:
    day_ms = 86_400_000
    answer = spoken(loop.sequencer, "r", "Draw.", "red square", created=1000)
    loop.log.append(RESPONSES, Event.wrap(answer, key="r", source="test", id="r"))
    window = {"join_window_h": 24 * 60, "retention_days": 30, "late_feedback": "drop"}
    learner = loop.learner(min_feedback=100, poll_s=0.05, **window)
    learner._intake.drain(0.05)
    store = learner._store
    for days, kept in ((40, 1), (61, 0)):
        store._db.execute("UPDATE response SET arrived = ?", (time.time() - 86_400 * days,))
        learner._prune()
        assert store.counts()["responses"] == kept
        if kept:
            said = feedback("f", "r", created=1000 + days * day_ms)
            assert store.apply([], [said], {}) == store.ready()[0] == 1
            claimed = store.begin_round(10, 10)
            assert claimed is not None
            store.finish_round(claimed.id, "promoted")


class Away:
    """A log of which nothing can be had until `back`."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self.back = threading.Event()
        self.refused = 0

    def __getattr__(self, name: str) -> object:
        if self.back.is_set() or name == "close":
            return getattr(self._log, name)

        def call(*_: object, **__: object) -> object:
            self.refused += 1
            raise LogError("broker away", retriable=True)

        return call


def test_learner_and_gate_wait_for_a_log_that_is_away(loop: Loop) -> None:
    loop.say(6)
    away = loop.log = Away(loop.log)  # type: ignore[assignment]
    learner, gate = loop.learner(min_feedback=6, quiet_s=0, poll_s=0.05), loop.gate(retry_s=0.05)
    stop = threading.Event()
    failed: list[BaseException] = []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException as error:
            failed.append(error)

    gate_thread = threading.Thread(target=run, args=(gate.run,))
    gate_thread.start()
    release = threading.Timer(0.5, away.back.set)
    release.start()
    ends = threading.Timer(20, stop.set)
    ends.start()

    def stop_when_promoted() -> None:
        while not stop.is_set():
            if away.back.is_set() and ("policy-000001", "PROMOTED") in states(away._log, "policy"):
                time.sleep(0.5)
                stop.set()
            time.sleep(0.05)

    watcher = threading.Thread(target=stop_when_promoted)
    watcher.start()
    run(learner.run)  # the state belongs to this thread
    gate_thread.join(30)
    watcher.join(30)
    ends.cancel()
    assert failed == []
    assert away.refused > 3
    assert used_by(loop, "policy") == [[f"f{i}" for i in range(6)]]


def test_a_full_disk_is_waited_for_and_loses_no_round(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(6)
    failures = 0
    real = Registry.publish

    def full(self: Registry, lineage: str, write: object, **more: object) -> object:
        nonlocal failures
        failures += 1
        if failures < 8:  # more often than a round that fails by its own fault is tried
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, lineage, write, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Registry, "publish", full)
    learner = loop.learner(gate_timeout_s=0, round_attempts=2, min_feedback=6, quiet_s=0, poll_s=0.05)
    stop = threading.Event()
    watch = threading.Timer(0, lambda: [time.sleep(0.05) for _ in range(400) if not used_by(loop, "policy")])
    watch.start()
    threading.Thread(target=lambda: (watch.join(), stop.set())).start()
    learner.run(stop)
    assert used_by(loop, "policy") == [[f"f{i}" for i in range(6)]]
    assert len(loop.journal("failure")) == 7


def test_a_decision_recorded_but_not_announced_is_announced_without_a_new_evaluation(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    gate = loop.gate()
    event = gate.next_candidate()
    assert event is not None
    with monkeypatch.context() as patch:
        patch.setattr("trainer.gate.service.announce", lambda *_, **__: (_ for _ in ()).throw(LogError("away")))
        with pytest.raises(LogError):
            gate.decide(event)
    loop.services.generated.clear()
    again = loop.gate()
    decision = again.decide(event)
    assert decision.promote
    assert loop.services.generated == []
    assert states(loop.log, "policy")[-1] == ("policy-000001", "PROMOTED")


def test_a_restarted_gate_unloads_what_was_rejected(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0).once()
    announce(loop.log, "policy", "policy-000001", "rejected")
    loop.services.resident.add("policy-000001")
    stop = threading.Event()
    thread = threading.Thread(target=loop.gate().run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 20
    while "policy-000001" in loop.services.resident and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join(30)
    assert loop.services.resident == {BASE}
