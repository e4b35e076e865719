"""Sampling parameters are filled in from the checkpoint and cut to the room that the prompt leaves."""

import json
from pathlib import Path
from typing import Any

import pytest

from protos.anyloop.v1 import types_pb2
from services.replica.sampling import SamplingDefaults, resolve, to_host
from services.rpc.errors import RpcError


def test_unset_fields_take_the_checkpoints_defaults(tmp_path: Path) -> None:
    config = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 40}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = SamplingDefaults.from_pretrained(tmp_path)
    assert defaults == SamplingDefaults(0.7, 0.9, 20, 40)
    resolved = resolve(types_pb2.SamplingParams(seed=5), defaults, 10, 384)
    assert (round(resolved.temperature, 6), round(resolved.top_p, 6)) == (0.7, 0.9)
    assert (resolved.top_k, resolved.max_tokens, resolved.seed) == (20, 40, 5)


def test_penalties_and_min_p_come_from_the_checkpoint_or_are_off(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"min_p": 0.125, "repetition_penalty": 1.5}))
    resolved = resolve(types_pb2.SamplingParams(), SamplingDefaults.from_pretrained(tmp_path), 10, 384)
    assert (resolved.min_p, resolved.repetition_penalty) == (0.125, 1.5)
    off = resolve(types_pb2.SamplingParams(), SamplingDefaults(), 10, 384)
    assert (off.min_p, off.repetition_penalty, off.presence_penalty, off.frequency_penalty) == (0, 1, 0, 0)
    assert all(off.HasField(name) for name in ("min_p", "repetition_penalty", "presence_penalty", "top_logprobs"))


def test_all_that_was_asked_for_is_in_the_event_and_goes_to_the_host() -> None:
    asked = {
        "temperature": 0.5,
        "top_p": 0.75,
        "top_k": 3,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "logit_bias": {7: -100.0, 9: 1.5},
        "top_logprobs": 5,
        "seed": 11,
        "max_tokens": 6,
        "stop": ["x"],
    }
    resolved = resolve(types_pb2.SamplingParams(**asked), SamplingDefaults(), 10, 384)
    assert resolved == types_pb2.SamplingParams(**asked)
    assert to_host(resolved) == asked


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"min_p": 1.5}, "min_p is 1.5; it must be between 0"),
        ({"min_p": float("nan")}, "min_p is nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0; it must be above 0 and at most 100"),
        ({"presence_penalty": -2.5}, "presence_penalty is -2.5; it must be between -2 and 2"),
        ({"frequency_penalty": 3.0}, "frequency_penalty is 3; it must be between -2 and 2"),
        ({"top_logprobs": 21}, "top_logprobs is 21; it must be between 0 and 20"),
        ({"logit_bias": {3: 100.5}}, "gives token 3 100.5"),
        ({"logit_bias": {-1: 1.0}}, "gives token -1 1"),
        ({"logit_bias": dict.fromkeys(range(1025), 1.0)}, "names 1025 tokens; at most 1024"),
        ({"temperature": float("nan")}, "temperature is nan"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(RpcError, match=message):
        resolve(types_pb2.SamplingParams(**asked), SamplingDefaults(), 10, 384)


def test_zero_is_a_value_and_greedy_checkpoints_stay_greedy(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.7}))
    assert SamplingDefaults.from_pretrained(tmp_path).temperature == 0.0
    asked = types_pb2.SamplingParams(temperature=0.0, top_k=0, seed=0)
    resolved = resolve(asked, SamplingDefaults(temperature=1.0, top_k=7), 10, 384)
    assert (resolved.temperature, resolved.top_k, resolved.seed) == (0.0, 0, 0)


def test_an_answer_never_takes_more_than_the_prompt_leaves() -> None:
    assert resolve(types_pb2.SamplingParams(max_tokens=1000), SamplingDefaults(), 300, 384).max_tokens == 84
    assert resolve(types_pb2.SamplingParams(), SamplingDefaults(), 300, 384).max_tokens == 84
    with pytest.raises(RpcError, match="takes 384 tokens and this model holds 384"):
        resolve(types_pb2.SamplingParams(), SamplingDefaults(), 384, 384)
