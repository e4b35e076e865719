"""Swapping weights between two steps: what running requests go on with, and when the old set leaves."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.hosts.interface import HostError
from services.policy.engine import Engine, Request, Sampling, WeightSet


def _model(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=97, max_position_embeddings=128, bos_token_id=None, eos_token_id=None, **shape)
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model


MODELS = {"v0": _model(0), "v1": _model(1)}
PROMPT = [5, 8, 13, 21, 34]


def _engine() -> Engine:
    engine = Engine(slots=4, max_tokens=64, queue=16)
    engine.add_weights(WeightSet("v0", MODELS["v0"], "d0"))
    engine.activate("v0", "finish")
    return engine


def _submit(engine: Engine, pin: str = "", prompt: list[int] = PROMPT) -> Request:
    request = Request("r", prompt, Sampling(temperature=0.0, max_tokens=10), pin=pin)
    engine.submit(request)
    return request


def _generate(version: str, prompt: list[int], count: int) -> list[int]:
    inputs = torch.tensor([prompt])
    mask = torch.ones_like(inputs)
    model = MODELS[version]
    tokens = model.generate(inputs, attention_mask=mask, do_sample=False, max_new_tokens=count, pad_token_id=0)
    return tokens[0, len(prompt) :].tolist()


def _versions(engine: Engine) -> list[str]:
    return [weights.version for weights in engine.weights]


def _drain(engine: Engine) -> None:
    while engine.busy:
        for end in engine.step():
            assert end.error is None


def test_finish_lets_running_requests_end_on_the_weights_they_began_with() -> None:
    engine = _engine()
    old = _submit(engine)
    for _ in range(4):
        engine.step()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    previous, stall = engine.activate("v1", "finish")
    new = _submit(engine)
    assert (previous, _versions(engine)) == ("v0", ["v0", "v1"])
    assert 0 <= stall < 0.1
    _drain(engine)
    assert old.output == _generate("v0", PROMPT, 10)
    assert new.output == _generate("v1", PROMPT, 10)
    assert (old.spans, new.spans) == ([("v0", 0, 10)], [("v1", 0, 10)])
    assert _versions(engine) == ["v1"]  # the old set left with its last request


def test_recompute_goes_on_as_if_the_new_weights_had_read_everything() -> None:
    engine = _engine()
    request = _submit(engine)
    for _ in range(4):
        engine.step()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    engine.activate("v1", "recompute")
    assert _versions(engine) == ["v1"]
    _drain(engine)
    before = _generate("v0", PROMPT, 4)
    assert request.output == before + _generate("v1", PROMPT + before, 6)
    assert request.spans == [("v0", 0, 4), ("v1", 4, 10)]


def test_only_what_new_prompts_take_is_told_apart_from_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    fresh = WeightSet("v1", MODELS["v1"], "d1")
    engine.add_weights(fresh)
    for weights in engine.weights:
        monkeypatch.setattr(weights.forward, "read", _slowed(weights.forward.read))
    _submit(engine)
    engine.step()
    assert engine.reading_seconds >= SLOW
    engine.activate("v1", "recompute")
    engine.step()
    assert engine.reading_seconds == 0.0  # the answer stood still meanwhile
    assert engine.decoded
    _drain(engine)


SLOW = 0.05


def _slowed(read: Callable[..., None]) -> Callable[..., None]:
    def slow(*args: object) -> None:
        time.sleep(SLOW)
        read(*args)

    return slow


def test_a_recompute_that_fails_ends_its_requests_instead_of_garbling_them(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _engine()
    request = _submit(engine)
    engine.step()
    fresh = WeightSet("v1", MODELS["v1"], "d1")
    engine.add_weights(fresh)

    def out_of_memory(*args: object) -> None:
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(fresh.forward, "read", out_of_memory)
        engine.activate("v1", "recompute")
        (end,) = engine.step()
    assert (end.request, end.finished, len(request.output)) == (request, "", 1)
    assert end.error is not None
    assert "no memory" in end.error.message
    later = _submit(engine)
    _drain(engine)
    assert later.output == _generate("v1", PROMPT, 10)
    assert _versions(engine) == ["v1"]


def test_keep_goes_on_with_the_old_cache_and_the_new_weights() -> None:
    engine = _engine()
    request = _submit(engine)
    for _ in range(4):
        engine.step()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    engine.activate("v1", "keep")
    assert _versions(engine) == ["v1"]
    _drain(engine)
    assert request.spans == [("v0", 0, 4), ("v1", 4, 10)]
    # The same by hand: the old model's cache, then single tokens through the new one.
    with torch.no_grad():
        read = PROMPT + request.output[:3]
        cache = MODELS["v0"](torch.tensor([read]), use_cache=True).past_key_values
        token, expected = request.output[3], []
        for position in range(len(read), len(read) + 6):
            out = MODELS["v1"](
                torch.tensor([[token]]), past_key_values=cache, position_ids=torch.tensor([[position]]), use_cache=True
            )
            token = int(out.logits[0, -1].argmax())
            expected.append(token)
    assert request.output[4:] == expected


def test_a_staged_version_answers_pinned_requests_beside_the_serving_one() -> None:
    engine = _engine()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    requests = [_submit(engine, pin=pin, prompt=[*PROMPT, index]) for index, pin in enumerate(["", "v1", "", "v1"])]
    _drain(engine)
    for index, (request, version) in enumerate(zip(requests, ["v0", "v1", "v0", "v1"], strict=True)):
        assert request.output == _generate(version, [*PROMPT, index], 10)
    assert engine.weights.serving is not None
    assert engine.weights.serving.version == "v0"


def test_a_pinned_request_stays_on_its_version_in_every_mode() -> None:
    engine = _engine()
    request = _submit(engine, pin="v0")
    engine.step()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    engine.activate("v1", "recompute")
    _drain(engine)
    assert request.output == _generate("v0", PROMPT, 10)
    assert _versions(engine) == ["v1"]


def test_unloading_waits_for_the_last_request_and_refuses_the_serving_version() -> None:
    engine = _engine()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    request = _submit(engine, pin="v1")
    engine.weights.unload("v1")
    assert _versions(engine) == ["v0", "v1"]
    _drain(engine)
    assert len(request.output) == 10
    assert _versions(engine) == ["v0"]
    with pytest.raises(HostError) as refused:
        engine.weights.unload("v0")
    assert refused.value.code == "FAILED_PRECONDITION"


def test_activating_the_old_version_again_while_it_drains_is_a_rollback() -> None:
    engine = _engine()
    _submit(engine)
    engine.step()
    engine.add_weights(WeightSet("v1", MODELS["v1"], "d1"))
    engine.activate("v1", "finish")
    engine.activate("v0", "finish")
    _drain(engine)
    assert _versions(engine) == ["v0"]


def test_another_set_under_a_resident_name_is_refused() -> None:
    engine = _engine()
    with pytest.raises(HostError, match="unload it first"):
        engine.add_weights(WeightSet("v0", MODELS["v1"], "another digest"))
