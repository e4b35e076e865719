"""Weights that overflow when they run: their requests fail with a reason, all other answers stay what they are."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from services.policy.engine import End, Engine, Request, Sampling, WeightSet
from services.policy.engine.forward.fused import FusedForward
from services.policy.engine.forward.transformers_forward import TransformersForward

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
Damage = Callable[[PreTrainedModel], None]


def _model() -> PreTrainedModel:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model.eval()


def _logits_overflow(model: PreTrainedModel) -> None:
    model.model.norm.weight.data.fill_(3e38)


def _values_overflow(model: PreTrainedModel) -> None:
    """NaN in what the cache keeps of every token, from the second layer on."""
    for name in ("gate_proj", "up_proj"):
        getattr(model.model.layers[0].mlp, name).weight.data.mul_(1e25)


def _set(kind: str, version: str, damage: Damage | None = None) -> WeightSet:
    """Made as a swap makes it: with a forward that was proven on other numbers."""
    model = _model()
    weights = WeightSet(version, model, version, kind=kind)
    if damage is not None:
        bad = copy.deepcopy(model)
        damage(bad)
        if isinstance(weights.forward, FusedForward):
            weights.forward = weights.forward.with_tensors(bad.state_dict())
        else:
            weights.forward = TransformersForward(bad, weights.options)
    return weights


def _request(pin: str = "", temperature: float = 0.0, seed: int = 3, prompt: list[int] | None = None) -> Request:
    sampling = Sampling(temperature=temperature, max_tokens=10, seed=seed, top_p=0.9 if temperature else 1.0)
    return Request("r", prompt or PROMPT, sampling, pin=pin)


def _run(engine: Engine, *requests: Request) -> dict[Request, End]:
    for request in requests:
        engine.submit(request)
    ends: dict[Request, End] = {}
    for _ in range(200):
        if not engine.busy:
            return ends
        ends |= {end.request: end for end in engine.step()}
    raise AssertionError("requests hang")


def _engine(kind: str, slots: int = 4) -> Engine:
    engine = Engine(slots=slots, max_tokens=64, queue=16, prefix_rows=2)
    engine.add_weights(_set(kind, "good"))
    engine.activate("good", "finish")
    return engine


@pytest.fixture(params=["compiled attention", "torch's attention", "transformers"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch's attention":
        monkeypatch.setattr("services.policy.engine.forward.fused.decode_attention", lambda *_: None)
    return "transformers" if request.param == "transformers" else "fused"


@pytest.mark.parametrize("damage", [_logits_overflow, _values_overflow])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_fails_with_the_version_and_a_way_out(kind: str, damage: Damage, temperature: float) -> None:
    engine = _engine(kind)
    engine.add_weights(_set(kind, "bad", damage))
    engine.activate("bad", "finish")
    request = _request(temperature=temperature)
    error = _run(engine, request)[request].error
    assert error is not None
    assert (error.code, error.retriable) == ("INTERNAL", False)
    assert "bad computes numbers that are not finite; activate another version" in error.message
    assert request.output == []  # nothing of it was ever said


@pytest.mark.parametrize("damage", [_logits_overflow, _values_overflow])
def test_after_a_rollback_answers_are_the_good_models_own(kind: str, damage: Damage) -> None:
    fresh = _request()
    _run(_engine(kind), fresh)
    engine = _engine(kind, slots=2)
    engine.add_weights(_set(kind, "bad", damage))
    engine.activate("bad", "finish")
    longer = [_request(prompt=[*PROMPT, *range(20, 40 + extra)]) for extra in range(4)]  # every row, far behind PROMPT
    assert all(end.error for end in _run(engine, *longer).values())
    engine.add_weights(_set(kind, "good"))
    engine.activate("good", "finish")
    # A longer one beside them: torch's attention then looks at what stands behind the end of the shorter ones.
    again = [_request(), _request(prompt=[*PROMPT[:10], *range(60, 80)]), _request()]
    assert all(end.finished == "length" for end in _run(engine, *again).values())
    assert again[0].output == again[2].output == fresh.output
    assert again[0].logprobs == pytest.approx(fresh.logprobs, abs=1e-5)


def test_those_who_are_pinned_to_sound_weights_go_on(kind: str) -> None:
    alone = _request()
    _run(_engine(kind), alone)
    engine = _engine(kind)
    engine.add_weights(_set(kind, "bad", _values_overflow))
    mixed = [_request(pin="bad"), _request(), _request(pin="bad", prompt=[*PROMPT, *range(20, 50)]), _request()]
    ends = _run(engine, *mixed)
    assert [bool(ends[request].error) for request in mixed] == [True, False, True, False]
    assert mixed[1].output == mixed[3].output == alone.output


def test_answers_that_move_to_such_weights_end_with_what_they_had(kind: str) -> None:
    engine = _engine(kind)
    request = _request()
    engine.submit(request)
    while len(request.output) < 4:
        engine.step()
    engine.add_weights(_set(kind, "bad", _logits_overflow))
    engine.activate("bad", "keep")
    (end,) = engine.step()
    assert end.error is not None
    assert len(request.output) == len(request.logprobs) == 4
    assert request.spans == [("good", 0, 4)]
