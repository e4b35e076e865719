"""Prompts are read in bounded pieces, beside running answers, and what was read once is not read again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.policy.engine import Engine, Request, Sampling, WeightSet
from services.policy.engine.budget import LEAST, MOST, ReadBudget
from services.policy.engine.forward import Chunk

VOCABULARY = 97


def _model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=256, **shape)
    config.bos_token_id = config.eos_token_id = None
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model.eval()


MODELS = {"v0": _model(0), "v1": _model(1)}


class Reads:
    """An engine, and the pieces of prompts that it computed."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, slots: int = 4, prefix_rows: int = 4, budget: int = MOST
    ) -> None:
        self.engine = Engine(slots=slots, max_tokens=200, queue=64, prefix_rows=prefix_rows)
        self.chunks: list[Chunk] = []
        monkeypatch.setattr(self.engine.reading._budget, "tokens", lambda somebody_waits: budget)
        for version, model in MODELS.items():
            weights = WeightSet(version, model, f"digest of {version}")
            read = weights.forward.read

            def counted(cache: Any, chunks: list[Chunk], read: Any = read) -> None:
                self.chunks.extend(chunks)
                read(cache, chunks)

            monkeypatch.setattr(weights.forward, "read", counted)
            self.engine.add_weights(weights)
        self.engine.activate("v0", "finish")

    @property
    def tokens(self) -> int:
        return sum(len(chunk.tokens) for chunk in self.chunks)

    def answer(self, *prompts: list[int], length: int = 8) -> list[Request]:
        requests = [Request("r", prompt, Sampling(0.0, max_tokens=length)) for prompt in prompts]
        for request in requests:
            self.engine.submit(request)
        while self.engine.busy:
            assert all(end.error is None for end in self.engine.step())
        return requests


def _alone(prompt: list[int], length: int = 8, version: str = "v0") -> list[int]:
    inputs = torch.tensor([prompt])
    with torch.no_grad():
        whole = MODELS[version].generate(
            inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=length, pad_token_id=0
        )
    return list(whole[0, len(prompt) :].tolist())


def _prompt(length: int, seed: int = 0) -> list[int]:
    return [(7 * place * place + 13 * seed + 3) % VOCABULARY for place in range(length)]


def test_a_long_prompt_does_not_hold_up_running_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, budget=16)
    engine = reads.engine
    short = Request("short", [5, 6, 7], Sampling(0.0, max_tokens=40))
    engine.submit(short)
    engine.step()
    long = Request("long", _prompt(100), Sampling(0.0, max_tokens=8))
    engine.submit(long)
    for step in range(6):
        engine.step()
        assert len(short.output) == step + 2  # one token per step, whatever else is read
        assert long.output == []
    while engine.busy:
        engine.step()
    assert [len(chunk.tokens) for chunk in reads.chunks] == [2, 16, 16, 16, 16, 16, 16, 3]
    assert short.output == _alone([5, 6, 7], 40)
    assert long.output == _alone(_prompt(100))


def test_equal_prompts_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    requests = reads.answer(*[_prompt(50)] * 4)
    assert reads.tokens == 49
    assert [request.output for request in requests] == [_alone(_prompt(50))] * 4
    assert reads.engine.prefixes.reused_tokens == 3 * 49


def test_many_choices_of_one_prompt_leave_the_other_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, slots=8, prefix_rows=4)
    others = [_prompt(30, seed) for seed in (1, 2, 3)]
    for other in others:
        reads.answer(other)
    reads.answer(*[_prompt(50)] * 8)
    before = reads.tokens
    for other in others:
        reads.answer(other)
    assert reads.tokens == before


def test_a_shared_beginning_is_read_once_also_between_requests_that_follow_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reads = Reads(monkeypatch)
    head = _prompt(40)
    first, second = [*head, 1, 2, 3], [*head, 4, 5, 6, 7]
    assert reads.answer(first)[0].output == _alone(first)
    assert reads.answer(second)[0].output == _alone(second)
    assert reads.tokens == 42 + 3
    assert reads.answer(first)[0].output == _alone(first)  # what the second copied is not what the first loses
    assert reads.tokens == 42 + 3


def test_the_next_turn_of_a_conversation_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    (first,) = reads.answer(_prompt(30))
    follow_up = [*first.prompt, *first.output, 8, 9, 10]
    assert reads.answer(follow_up)[0].output == _alone(follow_up)
    assert reads.tokens == 29 + 3  # the last token of the first answer, and two of the three new ones


def test_what_another_version_read_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch)
    reads.answer(_prompt(30))
    reads.engine.activate("v1", "finish")
    assert reads.answer(_prompt(30))[0].output == _alone(_prompt(30), version="v1")
    assert reads.tokens == 58


@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_a_cache_of_two_versions_is_never_shared(monkeypatch: pytest.MonkeyPatch, mode: Any) -> None:
    reads = Reads(monkeypatch, budget=16)
    engine, prompt = reads.engine, _prompt(60)
    running = Request("running", _prompt(20, seed=5), Sampling(0.0, max_tokens=20))
    reading = Request("reading", prompt, Sampling(0.0, max_tokens=8))
    engine.submit(running)
    engine.step()
    engine.step()
    engine.submit(reading)
    engine.step()
    engine.activate("v1", mode)
    while engine.busy:
        assert all(end.error is None for end in engine.step())
    for asked in (prompt, [*running.prompt, *running.output]):
        assert reads.answer(asked)[0].output == _alone(asked, version="v1")


def test_more_prompts_than_rows_wait_for_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, slots=8, prefix_rows=1, budget=32)
    prompts = [_prompt(45, seed) for seed in range(6)]
    assert [request.output for request in reads.answer(*prompts)] == [_alone(prompt) for prompt in prompts]


def test_the_only_row_serves_prompts_that_share_a_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, prefix_rows=1)
    head = _prompt(40)
    prompts = [[*head, *tail] for tail in ([1, 2, 3], [4, 5], [1, 2, 3, 4])]
    for prompt in prompts:
        assert reads.answer(prompt)[0].output == _alone(prompt)
    assert reads.tokens == 42 + 1 + 3


def test_a_request_cancelled_while_it_reads_leaves_its_row_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = Reads(monkeypatch, prefix_rows=1, budget=16)
    engine, prompt = reads.engine, _prompt(60)
    gone = Request("gone", prompt, Sampling(0.0, max_tokens=8))
    engine.submit(gone)
    engine.step()
    engine.step()
    engine.cancel(gone)
    assert [(end.request, end.finished) for end in engine.step()] == [(gone, "cancelled")]
    assert reads.answer(prompt)[0].output == _alone(prompt)
    assert reads.tokens == 59  # the pieces that were read for the one that left are not read again


def test_greedy_answers_differ_between_batches_only_where_two_tokens_are_as_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Sums in another order round differently. Beyond a margin far above that, nothing may change."""
    prompts = [_prompt(5 + 3 * seed, seed) for seed in range(24)]
    together = Reads(monkeypatch, slots=24, budget=24).answer(*prompts, length=24)
    for prompt, request in zip(prompts, together, strict=True):
        alone = Reads(monkeypatch, slots=1).answer(prompt, length=24)[0].output
        if alone != request.output:
            at = next(i for i, (a, b) in enumerate(zip(alone, request.output, strict=True)) if a != b)
            with torch.no_grad():
                logits = MODELS["v0"](torch.tensor([[*prompt, *alone[:at]]])).logits[0, -1]
            best = logits.topk(2).values
            assert float(best[0] - best[1]) < 1e-3


def test_the_budget_learns_the_rate_and_stays_within_its_bounds() -> None:
    budget = ReadBudget(0.020)
    assert budget.tokens(somebody_waits=False) == MOST
    assert budget.tokens(somebody_waits=True) == 128  # nothing is known yet
    budget.observe(100, 0.010)  # 0.1 ms a token: 200 tokens in 20 ms
    assert budget.tokens(somebody_waits=True) == 200
    for _ in range(50):
        budget.observe(100, 0.100)
    assert budget.tokens(somebody_waits=True) == 20
    for _ in range(50):
        budget.observe(100, 10.0)
    assert budget.tokens(somebody_waits=True) == LEAST
    for _ in range(200):
        budget.observe(2048, 0.001)
    assert budget.tokens(somebody_waits=True) == MOST
