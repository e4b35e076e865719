"""Which answers of users are rollouts, and what each of their tokens counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anyloop.sequence import Sequencer
from protos.anyloop.v1 import events_pb2, types_pb2
from tests.trainer.events import spoken
from trainer.algorithms.rollout import Rollout, Span
from trainer.config import TrainerSettings
from trainer.logged_rollouts import Unset, logged_rollouts
from trainer.rollouts import of_turn

VERSIONS = ["policy-000000", "policy-000001", "policy-000002"]


def answered(sequencer: Sequencer, name: str = "r") -> events_pb2.ResponseEvent:
    return spoken(sequencer, name, "Draw it.", "red square", version=VERSIONS[-1])


def rollouts(*events: events_pb2.ResponseEvent, sequencer: Sequencer, **settings: object) -> list[Rollout]:
    found, left_out = logged_rollouts(events, VERSIONS, sequencer.layout, TrainerSettings(**settings))  # type: ignore[arg-type]
    assert left_out.total() + len(found) == len({event.response_id for event in events})
    return found


def test_an_answer_of_the_serving_weights_is_a_rollout_as_it_was_logged(sequencer: Sequencer) -> None:
    event = answered(sequencer)
    event.sampling.temperature, event.sampling.top_p, event.sampling.max_tokens = 1.0, 1.0, 48
    (one,) = rollouts(event, event, sequencer=sequencer)
    assert (one.prompt, one.answer) == (tuple(event.prompt_token_ids), tuple(event.output_token_ids))
    assert one.logprobs == tuple(event.output_logprobs)
    assert one.limit == 48
    assert one.spans == (Span(VERSIONS[-1], 0, len(one.answer), 0, 1.0),)
    assert bool(one.current.all())


def test_tokens_on_both_sides_of_a_swap_count_by_their_own_age(sequencer: Sequencer) -> None:
    event = answered(sequencer)
    del event.version_spans[:]
    size = len(event.output_token_ids)
    event.version_spans.add(version=VERSIONS[1], begin=0, end=3)
    event.version_spans.add(version=VERSIONS[2], begin=3, end=size)
    (one,) = rollouts(event, sequencer=sequencer, staleness_decay=0.5)
    assert one.weights.tolist() == [0.5] * 3 + [1.0] * (size - 3)
    assert one.current.tolist() == [False] * 3 + [True] * (size - 3)


def test_tokens_beyond_the_bound_count_nothing_and_an_answer_of_such_alone_is_left_out(sequencer: Sequencer) -> None:
    event, old = answered(sequencer), answered(sequencer, "old")
    size = len(event.output_token_ids)
    del event.version_spans[:]
    event.version_spans.add(version=VERSIONS[0], begin=0, end=2)
    event.version_spans.add(version=VERSIONS[2], begin=2, end=size)
    old.version_spans[0].version = "policy-of-another-time"
    (one,) = rollouts(event, old, sequencer=sequencer, max_versions_behind=1)
    assert one.weights.tolist() == [0.0] * 2 + [1.0] * (size - 2)


def sampled(**params: object) -> Callable[[events_pb2.ResponseEvent], None]:
    return lambda event: event.sampling.CopyFrom(types_pb2.SamplingParams(**params))  # type: ignore[arg-type]


UNFIT: dict[str, tuple[Callable[[events_pb2.ResponseEvent], object], str]] = {
    "cooler": (sampled(temperature=0.7), "logged_answer_of_another_distribution"),
    "greedy": (sampled(temperature=0.0), "logged_answer_of_another_distribution"),
    "top_p": (sampled(temperature=1.0, top_p=0.9), "logged_answer_of_another_distribution"),
    "top_k": (sampled(top_k=5), "logged_answer_of_another_distribution"),
    "bias": (sampled(logit_bias={3: 1.0}), "logged_answer_of_another_distribution"),
    "cut": (lambda event: event.output_token_ids.pop(), "unfinished_logged_answer"),
    "no logprobs": (lambda event: event.output_logprobs.pop(), "logged_answer_without_logprobs"),
    "not a number": (
        lambda event: event.output_logprobs.__setitem__(0, float("nan")),
        "logged_answer_without_logprobs",
    ),
    "no versions": (lambda event: event.version_spans.pop(), "logged_answer_without_versions"),
    "a gap": (lambda event: setattr(event.version_spans[0], "begin", 1), "logged_answer_without_versions"),
    "foreign": (lambda event: event.output_token_ids.__setitem__(0, 10**6), "not_a_sequence_of_this_model"),
}


@pytest.mark.parametrize("what", list(UNFIT))
def test_what_gives_no_importance_ratios_is_left_out_with_its_reason(sequencer: Sequencer, what: str) -> None:
    spoil, reason = UNFIT[what]
    event = answered(sequencer)
    spoil(event)
    found, left_out = logged_rollouts([event], VERSIONS, sequencer.layout, TrainerSettings())
    assert (found, dict(left_out)) == ([], {reason: 1})


@pytest.mark.parametrize("config", [{"temperature": 0.7}, {"top_p": 0.9}, {"top_k": 50}, {"do_sample": False}], ids=str)
def test_what_a_request_left_unset_is_what_the_checkpoint_says(
    sequencer: Sequencer, tmp_path: Path, config: dict[str, object]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    unset = Unset.of(tmp_path, 384)
    silent, plain = answered(sequencer), answered(sequencer, "plain")
    sampled(temperature=1.0, top_p=1.0, top_k=0)(plain)
    found, left_out = logged_rollouts([silent, plain], VERSIONS, sequencer.layout, TrainerSettings(), unset)
    assert left_out == {"logged_answer_of_another_distribution": 1}
    assert [one.prompt for one in found] == [tuple(plain.prompt_token_ids)]


def test_an_unset_limit_is_the_checkpoints_and_never_beyond_the_engines_room(
    sequencer: Sequencer, tmp_path: Path
) -> None:
    event = answered(sequencer)
    size = len(event.prompt_token_ids)

    def limit(capacity: int) -> int:
        (one,), _ = logged_rollouts(
            [event], VERSIONS, sequencer.layout, TrainerSettings(), Unset.of(tmp_path, size + capacity)
        )
        return one.limit

    assert limit(200) == 200
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": 64}))
    assert (limit(200), limit(50)) == (64, 50)
    event.sampling.max_tokens = 100
    assert (limit(200), limit(50)) == (100, 50)


def test_each_logged_answer_is_used_in_one_turn_and_is_not_the_actors_own_later(sequencer: Sequencer) -> None:
    some = rollouts(*(answered(sequencer, f"r{i}") for i in range(5)), sequencer=sequencer)
    turns = [of_turn(some, turn, 3) for turn in range(3)]
    assert [len(turn) for turn in turns] == [2, 2, 1]
    assert [bool(turn[0].current.all()) for turn in turns] == [True, False, False]
    assert all(bool((one.weights == 1).all()) for turn in turns for one in turn)


def test_spans_that_do_not_cover_an_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        Rollout((1,), (2, 3), (-1.0, -1.0), spans=(Span("v", 0, 1),))
    with pytest.raises(ValueError, match="log-probabilities"):
        Rollout((1,), (2, 3), (-1.0,))
