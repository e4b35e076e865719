"""Every sampling feature against transformers' own processors and warpers on the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from services.policy.engine.request import Request, Sampling
from services.policy.engine.sampler import sample

PROMPT = [3, 3, 8, 11]
OUTPUT = [5, 5, 5, 3, 9]


def _reference(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Probabilities `[vocabulary]` after every step, in the order that sampler.py states."""
    ids = torch.tensor([PROMPT + OUTPUT])
    scores = RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)(ids, logits[None].clone())
    times = torch.bincount(torch.tensor(OUTPUT), minlength=len(logits)).float()
    scores = scores - sampling.presence_penalty * (times > 0) - sampling.frequency_penalty * times
    for token, bias in sampling.logit_bias.items():
        scores[0, token] += bias
    warpers = LogitsProcessorList([TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(ids, scores).softmax(-1)[0]


FEATURES: dict[str, dict[str, Any]] = {
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.8},
    "a small nucleus": {"top_p": 0.05},
    "top_k": {"top_k": 7},
    "top_k beyond the head": {"top_k": 150},
    "top_k and top_p": {"top_k": 20, "top_p": 0.6},
    "min_p": {"min_p": 0.2},
    "top_p and min_p": {"top_p": 0.7, "min_p": 0.1, "temperature": 1.5},
    "repetition": {"repetition_penalty": 1.8},
    "repetition wanted": {"repetition_penalty": 0.5},
    "presence": {"presence_penalty": 1.5},
    "frequency": {"frequency_penalty": -1.25},
    "bias": {"logit_bias": {4: 3.0, 100: -100.0}},
    "all": {
        "temperature": 0.8,
        "top_k": 60,
        "top_p": 0.9,
        "min_p": 0.02,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "logit_bias": {7: 2.0, 5: 1.0},
    },
}


@pytest.mark.parametrize("name", FEATURES)
def test_draws_follow_the_distribution_of_transformers(name: str) -> None:
    torch.manual_seed(sorted(FEATURES).index(name))
    logits, draws = torch.randn(200) * 1.5, 8000
    requests = [Request("r", PROMPT, Sampling(seed=seed, **FEATURES[name])) for seed in range(draws)]
    for request in requests:
        request.output.extend(OUTPUT)
    tokens = sample(logits.expand(draws, -1).clone(), requests).tokens
    expected = _reference(logits, requests[0].sampling)
    drawn = torch.bincount(torch.tensor(tokens), minlength=200) / draws
    assert not drawn[expected == 0].any()
    # Five standard deviations of 8000 draws, and one draw where a probability is tiny.
    bound = 5 * (expected * (1 - expected) / draws).sqrt() + 2 / draws
    assert ((drawn - expected).abs() <= bound).all()
    assert bool(drawn[expected > 0.005].all())


@pytest.mark.parametrize("name", FEATURES)
def test_greedy_takes_the_likeliest_of_the_adjusted_logits(name: str) -> None:
    torch.manual_seed(7)
    logits = torch.randn(16, 200) * 1.5
    features = {key: value for key, value in FEATURES[name].items() if key != "temperature"}
    requests = [Request("r", PROMPT, Sampling(temperature=0.0, **features)) for _ in range(16)]
    for request in requests:
        request.output.extend(OUTPUT)
    at_one = Sampling(temperature=1.0, **features)
    expected = [int(_reference(row, at_one).argmax()) for row in logits]
    assert sample(logits.clone(), requests).tokens == expected


def test_a_penalty_follows_the_output_as_it_grows() -> None:
    logits = torch.tensor([[2.0, 1.9, 1.7, -5.0]])
    request = Request("r", [3], Sampling(temperature=0.0, frequency_penalty=0.25))
    for token in [0, 1, 0, 2, 1, 0]:  # 2.0 1.75 1.5 1.25; 1.9 1.65 1.4; 1.7 1.45: taken in falling order
        assert sample(logits.clone(), [request]).tokens == [token]
        request.append(token, 0.0, "v")


def test_logprobs_and_alternatives_are_those_of_the_model_whatever_was_asked_for() -> None:
    torch.manual_seed(3)
    logits = torch.randn(2, 200)
    logits[:, 50:] = float("-inf")
    asked = Sampling(top_logprobs=4, **FEATURES["all"])
    draws = sample(logits.clone(), [Request("r", PROMPT, asked), Request("r", PROMPT, Sampling(temperature=0.0))])
    expected = logits.log_softmax(-1)
    assert draws.logprobs == pytest.approx([float(expected[row, token]) for row, token in enumerate(draws.tokens)])
    assert draws.top[1] is None
    likeliest = expected[0].topk(4)
    assert draws.top[0] is not None
    assert [token for token, _ in draws.top[0]] == likeliest.indices.tolist()
    assert [logprob for _, logprob in draws.top[0]] == pytest.approx(likeliest.values.tolist())


def test_forbidden_tokens_are_no_alternatives() -> None:
    logits = torch.tensor([[float("-inf"), 1.0, float("-inf"), 0.0]])
    (top,) = sample(logits, [Request("r", [0], Sampling(top_logprobs=4))]).top
    assert top is not None
    assert [token for token, _ in top] == [1, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("repetition_penalty", [1e-30, 100.0])
def test_nothing_opens_a_forbidden_token(temperature: float, repetition_penalty: float) -> None:
    logits = torch.full((64, 8), float("-inf"))
    logits[:, 3], logits[:, 4] = 0.5, -0.5
    bias = dict.fromkeys((0, 1, 2, 5, 6, 7), 100.0) | dict.fromkeys((3, 4), -100.0)
    sampling = {"repetition_penalty": repetition_penalty, "presence_penalty": 2.0, "logit_bias": bias}
    requests = [
        Request("r", [1, 3, 4], Sampling(temperature=temperature, seed=seed, **sampling))  # type: ignore[arg-type]
        for seed in range(64)
    ]
    draws = sample(logits, requests)
    assert set(draws.tokens) <= {3, 4}
    assert all(logprob > -2.0 for logprob in draws.logprobs)


def test_a_seed_draws_the_same_whatever_else_is_in_the_batch() -> None:
    torch.manual_seed(5)
    names = list(FEATURES)
    steps = [torch.randn(len(names), 200) for _ in range(12)]

    def answers(rows: list[int]) -> dict[int, list[int]]:
        requests = [Request("r", PROMPT, Sampling(seed=row, **FEATURES[names[row]])) for row in rows]
        for logits in steps:
            for request, token in zip(requests, sample(logits[rows], requests).tokens, strict=True):
                request.append(token, 0.0, "v")
        return {row: request.output for row, request in zip(rows, requests, strict=True)}

    together = answers(list(range(len(names))))
    for row in range(len(names)):
        assert answers([row])[row] == together[row]
    assert answers([5, 13, 1])[13] == together[13]


def test_tokens_of_equal_probability_are_kept_together() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, -4.0]])
    for sampling in ({"top_k": 2}, {"top_p": 0.8}):
        requests = [Request("r", [0], Sampling(seed=seed, **sampling)) for seed in range(400)]  # type: ignore[arg-type]
        assert set(sample(logits.expand(400, -1).clone(), requests).tokens) == {0, 1, 2, 3}
