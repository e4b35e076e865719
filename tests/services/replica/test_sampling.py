"""Sampling parameters are filled in from the checkpoint and cut to the room that the prompt leaves."""

import json
from pathlib import Path

import pytest

from protos.anyloop.v1 import types_pb2
from services.replica.sampling import SamplingDefaults, resolve
from services.rpc.errors import RpcError


def test_unset_fields_take_the_checkpoints_defaults(tmp_path: Path) -> None:
    config = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_new_tokens": 40}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    defaults = SamplingDefaults.from_pretrained(tmp_path)
    assert defaults == SamplingDefaults(0.7, 0.9, 20, 40)
    resolved = resolve(types_pb2.SamplingParams(seed=5), defaults, 10, 384)
    assert (round(resolved.temperature, 6), round(resolved.top_p, 6)) == (0.7, 0.9)
    assert (resolved.top_k, resolved.max_tokens, resolved.seed) == (20, 40, 5)


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
