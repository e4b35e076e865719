"""Draws against distributions written out by hand."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from services.policy.engine.request import Request, Sampling
from services.policy.engine.sampler import sample

# Probabilities 0.5, 0.25, 0.15, 0.1 in tokens 2, 0, 3, 1.
LOGITS = torch.tensor([0.25, 0.1, 0.5, 0.15]).log()


def _draws(count: int = 2000, **sampling: float) -> Counter[int]:
    requests = [Request("r", [0], Sampling(**{"seed": seed, **sampling})) for seed in range(count)]  # type: ignore[arg-type]
    tokens, *_ = sample(LOGITS.expand(count, -1), requests)
    return Counter(tokens)


def test_temperature_zero_takes_the_likeliest() -> None:
    assert set(_draws(50, temperature=0.0)) == {2}


def test_plain_draws_follow_the_distribution() -> None:
    drawn = _draws()
    # three standard deviations of 2000 draws are below 0.034
    assert [drawn[token] / 2000 for token in range(4)] == pytest.approx([0.25, 0.1, 0.5, 0.15], abs=0.034)


def test_temperature_sharpens() -> None:
    # squares of the probabilities, normalised: 0.25 / 0.345
    assert _draws(temperature=0.5)[2] / 2000 == pytest.approx(0.7246, abs=0.034)


@pytest.mark.parametrize(
    ("top_p", "allowed"), [(0.5, {2}), (0.51, {2, 0}), (0.75, {2, 0}), (0.8, {2, 0, 3}), (0.95, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, allowed: set[int]) -> None:
    assert set(_draws(top_p=top_p)) == allowed


def test_top_k_keeps_the_k_likeliest_in_proportion() -> None:
    drawn = _draws(top_k=2)
    assert set(drawn) == {0, 2}
    assert drawn[2] / 2000 == pytest.approx(2 / 3, abs=0.034)


def test_top_p_beyond_the_sorted_head_is_exact() -> None:
    logits = torch.zeros(1, 500)
    tokens = {sample(logits, [Request("r", [0], Sampling(seed=seed, top_p=0.99))])[0][0] for seed in range(300)}
    assert len(tokens) > 64  # the head that is sorted first holds 64 tokens, 13 % of the mass


def test_masked_tokens_are_never_drawn_and_do_not_count_in_the_logprob() -> None:
    masked = LOGITS.clone()
    masked[2] = float("-inf")
    for options in ({}, {"top_p": 0.9}, {"temperature": 0.0}):
        tokens, logprobs, _ = sample(masked.expand(200, -1), [_request(seed, **options) for seed in range(200)])
        assert 2 not in tokens
        expected = {0: math.log(0.5), 1: math.log(0.2), 3: math.log(0.3)}
        assert logprobs == pytest.approx([expected[token] for token in tokens], abs=1e-5)


def test_a_tiny_temperature_is_as_good_as_greedy() -> None:
    assert set(_draws(50, temperature=1e-6)) == {2}


def _request(seed: int, **options: float) -> Request:
    return Request("r", [0], Sampling(seed=seed, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("tiny", [1e-45, 1e-10, 1e-50])
def test_the_smallest_top_p_and_temperature_take_the_likeliest_token(tiny: float) -> None:
    logits = torch.randn(2, 97)
    options = [Sampling(temperature=1.0, top_p=tiny, top_k=3), Sampling(temperature=tiny)]
    requests = [Request("r", [1], sampling) for sampling in options]
    assert sample(logits.clone(), requests).tokens == logits.argmax(-1).tolist()
