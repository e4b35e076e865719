"""The engine's answers are the model's own, whatever else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from services.hosts.interface import HostError
from services.policy.engine import Engine, Request, Sampling, WeightSet

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
}


def _model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=True))
    elif family == "qwen3 with sliding layers":
        sliding = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
        model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, **sliding))
    elif family == "mistral with a window":
        model = MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=6))
    else:
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128)
        config.bos_token_id = config.eos_token_id = None
        model = GPT2LMHeadModel(config)
    for parameter in model.parameters():  # wide enough that no two logits tie
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model.eval()


def _engine(model: PreTrainedModel, slots: int = 8, queue: int = 64) -> Engine:
    engine = Engine(slots=slots, max_tokens=64, queue=queue)
    engine.add_weights(WeightSet("v0", model, "digest"))
    engine.activate("v0", "finish")
    return engine


def _request(prompt: list[int], name: str = "r", **sampling: float) -> Request:
    return Request(name, prompt, Sampling(**{"temperature": 0.0, "max_tokens": 12, **sampling}))  # type: ignore[arg-type]


def _run(engine: Engine, requests: Iterable[Request]) -> list[list[int]]:
    requests = list(requests)
    for request in requests:
        engine.submit(request)
    while engine.busy:
        for end in engine.step():
            assert end.error is None
    return [request.output for request in requests]


def _prompts(count: int) -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 30))] for _ in range(count)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3 with sliding layers", "mistral with a window", "gpt2"])
def test_greedy_answers_equal_generate_token_by_token(family: str) -> None:
    model = _model(family)
    prompts = _prompts(11)  # more than the slots: some start while others run
    answers = _run(_engine(model, slots=4), [_request(prompt) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        inputs = torch.tensor([prompt])
        expected = model.generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert answer == expected[0, len(prompt) :].tolist()


def test_greedy_answers_do_not_depend_on_the_batch() -> None:
    model, prompts = _model("llama"), _prompts(8)
    together = _run(_engine(model), [_request(prompt) for prompt in prompts])
    alone = [_run(_engine(model), [_request(prompt)])[0] for prompt in prompts]
    assert together == alone


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.8}, {"top_k": 5}, {"temperature": 0.5}])
def test_a_seed_gives_the_same_answer_in_any_batch(sampling: dict[str, float]) -> None:
    model, prompts = _model("llama"), _prompts(6)
    options = {"temperature": 1.0, "seed": 7, **sampling}
    alone = _run(_engine(model), [_request(prompts[0], **options)])[0]
    crowd = [_request(prompt, temperature=1.3, seed=index, top_p=0.9) for index, prompt in enumerate(prompts[1:])]
    asked = _request(prompts[0], **options)
    _run(_engine(model), [*crowd, asked])
    assert asked.output == alone
    assert _run(_engine(model), [_request(prompts[0], **{**options, "seed": 8})])[0] != alone


def test_logprobs_are_of_the_distribution_at_temperature_one() -> None:
    model = _model("llama")
    engine, prompt = _engine(model), [3, 14, 15]
    request = _request(prompt, temperature=0.3, top_k=3, seed=1)
    _run(engine, [request])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + request.output])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(request.output)[:, None])[:, 0]
    assert request.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_cancelled_request_ends_within_a_step_and_the_others_go_on() -> None:
    model, prompts = _model("qwen3"), _prompts(4)
    expected = _run(_engine(model), [_request(prompt) for prompt in prompts])
    engine = _engine(model, slots=3)
    requests = [_request(prompt) for prompt in prompts]
    for request in requests:
        engine.submit(request)
    for _ in range(3):
        engine.step()
    engine.cancel(requests[0])
    ends = [(e.request, e.finished) for e in engine.step() if e.finished]
    assert ends == [(requests[0], "cancelled")]
    assert len(requests[0].output) == 3
    while engine.busy:
        engine.step()
    assert [r.output for r in requests[1:]] == expected[1:]


def test_a_waiting_request_can_be_cancelled() -> None:
    engine = _engine(_model("llama"), slots=1)
    first, second = _request([1, 2]), _request([3, 4])
    engine.submit(first)
    engine.submit(second)
    engine.step()
    engine.cancel(second)
    engine.cancel(second)
    assert [e.request for e in engine.step() if e.finished == "cancelled"] == [second]
    assert second.output == []


def test_a_full_queue_refuses_with_a_retriable_error() -> None:
    engine = _engine(_model("llama"), queue=2)
    engine.submit(_request([1]))
    engine.submit(_request([1]))
    with pytest.raises(HostError) as refused:
        engine.submit(_request([1]))
    assert (refused.value.code, refused.value.retriable) == ("RESOURCE_EXHAUSTED", True)


def test_a_prompt_that_leaves_no_room_is_refused() -> None:
    engine = _engine(_model("llama"))
    with pytest.raises(HostError, match="shorten the conversation"):
        engine.submit(_request([1] * 60, max_tokens=12))


def test_an_unknown_pin_is_not_found() -> None:
    engine = _engine(_model("llama"))
    with pytest.raises(HostError) as refused:
        engine.submit(Request("r", [1], Sampling(max_tokens=4), pin="v9"))
    assert refused.value.code == "NOT_FOUND"


def test_a_failing_forward_ends_its_requests_and_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model("llama")
    engine, broken = _engine(model), _request([1, 2, 3])
    engine.submit(broken)
    with monkeypatch.context() as patch:
        serving = engine.weights.serving
        assert serving is not None
        patch.setattr(serving.forward, "decode", lambda *_: 1 / 0)
        errors = [e.error for e in engine.step()]
    assert [error.code for error in errors if error] == ["INTERNAL"]
    assert not engine.busy
    assert len(_run(engine, [_request([1, 2, 3])])[0]) == 12


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}]
)
def test_impossible_sampling_parameters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(HostError) as refused:
        Sampling(**wrong)  # type: ignore[arg-type]
    assert refused.value.code == "INVALID_ARGUMENT"
