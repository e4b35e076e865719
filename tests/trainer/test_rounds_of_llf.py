"""What a whole round does with earlier pairs, with voices, filters and hostile statements; scripted services."""

import pytest

from anyloop.log import FEEDBACK, RESPONSES, Event
from protos.anyloop.v1 import types_pb2
from tests.trainer.events import feedback, spoken
from tests.trainer.loop import Loop
from trainer.algorithms.reward_model import TrainedReward, train_reward_model
from trainer.candidate import CandidateMaker
from trainer.examples import Examples, Pair
from trainer.join_store import JoinStore
from trainer.policy_update import PolicyUpdate
from trainer.reliability import Reliability


class Killed(BaseException):
    """Stands for kill -9."""


def metrics_of(loop: Loop, version: str) -> dict:
    return loop.registry.manifest(version).metrics


def say_as(loop: Loop, name: str, principal: str, critique: str = "It should be a blue circle.") -> None:
    answer = spoken(loop.sequencer, name, f"Draw {name}.", "red square")
    said = feedback(f"f-{name}", name, principal=principal, critique=critique)
    loop.log.append(RESPONSES, Event.wrap(answer, key=name, source="test", id=name))
    loop.log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))


def refine(loop: Loop, name: str, principal: str, better: str = "blue circle") -> None:
    """Somebody says how it should have been."""
    answer = spoken(loop.sequencer, name, f"Draw {name}.", "red square")
    said = feedback(f"f-{name}", name, principal=principal, refinement=[types_pb2.ContentPart(text=better)])
    loop.log.append(RESPONSES, Event.wrap(answer, key=name, source="test", id=name))
    loop.log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))


def test_a_round_killed_in_training_goes_on_with_the_pairs_it_had_made(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.say(6)
    seen: list[list] = []

    def dying(self: PolicyUpdate, pairs: list, *rest: object) -> None:
        seen.append(pairs)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(PolicyUpdate, "train", dying)
        with pytest.raises(Killed):
            loop.learner(gate_timeout_s=0).once()
    loop.services.generated.clear()
    assert loop.learner(gate_timeout_s=0).once()
    assert loop.services.generated == []  # nothing was sampled again
    (pairs,) = seen
    metrics = metrics_of(loop, "policy-000001")
    assert metrics["pairs"] == len(pairs) == 12
    assert metrics["self_improving"]["pairs"] == 12  # what the killed run had counted


def test_other_settings_after_a_kill_make_other_pairs(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(6)
    with monkeypatch.context() as patch:
        patch.setattr(CandidateMaker, "_publish", lambda self, lineage, *rest: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            loop.learner(gate_timeout_s=0, critique_epochs=0).once()
    assert loop.learner(gate_timeout_s=0, critique_epochs=0, fresh_per_prompt=0).once()
    assert metrics_of(loop, "policy-000001")["pairs"] == 6


def test_the_second_round_trains_on_pairs_of_the_first_again(loop: Loop) -> None:
    loop.say(6)
    assert loop.learner(gate_timeout_s=0, replay_pairs=0.5).once()
    assert metrics_of(loop, "policy-000001")["pairs_replayed"] == 0
    loop.say(6)
    assert loop.learner(gate_timeout_s=0, replay_pairs=0.5).once()
    metrics = metrics_of(loop, "policy-000002")
    assert (metrics["pairs_replayed"], metrics["pairs"]) == (6, 18)
    assert metrics["pairs_by_signature"] == {"text>text": 18}


def test_no_principal_has_more_than_its_share_of_pairs_and_critiques(loop: Loop) -> None:
    for number in range(8):
        say_as(loop, f"e{number}", "eve")
    for number in range(4):
        say_as(loop, f"o{number}", f"p{number}")
    options = {"gate_timeout_s": 0, "fresh_per_prompt": 0, "max_principal_share": 0.35, "critique_held_out": 0.0}
    assert loop.learner(**options, critique_anchor=0.0).once()
    metrics = metrics_of(loop, "policy-000001")
    for name in ("pairs", "critiques"):
        assert metrics[f"{name}_largest_share_before"] == pytest.approx(8 / 12, abs=1e-3)
        assert metrics[f"{name}_largest_share"] == pytest.approx(0.35, abs=1e-3)
        assert metrics[f"{name}_voices"] == 5


def test_statements_that_are_not_believed_teach_nothing_now_or_later(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        say_as(loop, f"a{number}", "ada")
    for number in range(6):
        say_as(loop, f"e{number}", "eve", "It should be a purple cow.")

    def judged(world: object, checkpoint: object, statements: list, *rest: object) -> Reliability:
        trust = [0.0 if one.principal == "eve" else 0.9 for one in statements]
        return Reliability([1 - one for one in trust], trust, 0.1, {"ada": 0.1, "eve": 1.0})

    monkeypatch.setattr("trainer.example_maker.judge_statements", judged)
    options = {"gate_timeout_s": 0, "fresh_per_prompt": 0, "robust_share": 0.4, "critique_replay": 5.0}
    assert loop.learner(**options).once()
    metrics = metrics_of(loop, "policy-000001")
    assert metrics["critiques"] == 12
    assert metrics["left_out"]["unreliable"] == 6
    assert (metrics["robust_trimmed"], metrics["robust_principals_distrusted"]) == (6, 1)
    assert metrics["pairs"] == 18  # the critique model speaks of the answers that eve spoke of
    loop.say(6)
    assert loop.learner(**options).once()
    taught = loop.registry.manifest("critique-000002").metrics["critique_examples"]
    assert taught <= 6 + 12 + 2  # this round's, the believed ones of the first, and anchors


def test_what_was_found_of_statements_outlives_a_kill(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        say_as(loop, f"a{number}", f"p{number % 5}")
    asked: list[int] = []

    def judged(world: object, checkpoint: object, statements: list, *rest: object) -> Reliability:
        asked.append(len(statements))
        return Reliability([0.2] * len(statements), [0.8] * len(statements), 0.2, {})

    monkeypatch.setattr("trainer.example_maker.judge_statements", judged)
    with monkeypatch.context() as patch:
        patch.setattr(PolicyUpdate, "train", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            loop.learner(gate_timeout_s=0, robust_share=0.2).once()
    assert loop.learner(gate_timeout_s=0, robust_share=0.2).once()
    assert asked == [20]
    loop.process.close()
    store = JoinStore(loop.home / "trainer" / "state.db")
    assert set(store.trust.of_round(1).values()) == {0.8}
    store.close()


def test_the_reward_filter_judges_a_rounds_refinements(loop: Loop) -> None:
    loop.say(20)
    options = {"gate_timeout_s": 0, "filter": "reward", "reward_epochs": 2, "reward_lr": 3e-3}
    assert loop.learner(**options, filter_margin=-100.0).once()
    metrics = metrics_of(loop, "policy-000001")
    assert metrics["filter_kept"] == {"none": 40, "critique": 40, "reward": 40}
    assert metrics["filter_margin_mean"] > 0
    (line,) = loop.journal("round")
    assert line["seconds"]["reward_filter"] >= 0


def test_the_filters_judge_hears_no_voice_beyond_its_share_and_nothing_too_long(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(14):
        refine(loop, f"e{number}", "eve")
    for number in range(6):
        refine(loop, f"o{number}", f"p{number}")
    refine(loop, "long", "p9", " ".join(["blue circle"] * 60))
    lessons: list[list[Pair]] = []

    def train(world: object, start: object, pairs: list[Pair], *rest: object) -> TrainedReward:
        lessons.append(pairs)
        return train_reward_model(world, start, pairs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.candidate.train_reward_model", train)
    options = {"gate_timeout_s": 0, "filter": "reward", "fresh_per_prompt": 0, "critique_epochs": 0}
    assert loop.learner(**options, max_principal_share=0.4, max_tokens=120).once()
    assert len(lessons) == 2
    for pairs in lessons:
        weight = {name: sum(one.weight for one in pairs if one.voices == (name,)) for name in ("eve", "p0")}
        assert weight["eve"] <= 0.4 * sum(one.weight for one in pairs) + 1e-6
        assert weight["p0"] > 0
        assert all(len(sequence) <= 120 for one in pairs for sequence in one.sequences)


def test_what_people_refined_is_imitated_in_large_rounds_too(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(110):
        refine(loop, f"r{number}", f"p{number % 9}")
    imitated: list[set[str]] = []

    def train(self: PolicyUpdate, pairs: list, examples: Examples, *rest: object) -> None:
        imitated.append({one.source for one in examples.imitations})

    monkeypatch.setattr(PolicyUpdate, "train", train)
    options = {"gate_timeout_s": 0, "fresh_per_prompt": 0, "critique_epochs": 0, "forgetting_held_out": 0.2}
    assert loop.learner(**options).once()
    assert imitated == [{f"r{number}" for number in range(110)}]


@pytest.mark.parametrize("forgetting", ["watch", "average"])
def test_a_large_round_holds_pairs_out_and_reports_what_training_cost(loop: Loop, forgetting: str) -> None:
    loop.say(60)
    assert loop.learner(gate_timeout_s=0, forgetting=forgetting, critique_epochs=0).once()
    metrics = metrics_of(loop, "policy-000001")
    assert metrics["pairs"] + metrics["watched_pairs"] == 120
    assert metrics["forgotten"] == []
    assert metrics["watched"]["text>text"]["margin"] > 0  # it learned what was held out, too
    (line,) = loop.journal("round")
    assert "forgetting" in line["seconds"]
