"""Scores of given outputs: what the engine logged for them, whatever else is in the call and whatever runs."""

from __future__ import annotations

import asyncio
import math
import queue
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from anyloop.config import Settings
from anyloop.sequence import SequenceLayout
from services.hosts.inprocess_host import InprocessHost
from services.hosts.interface import HostError
from services.policy import scoring
from services.policy.engine.answer_masks import AnswerState
from services.policy.program import PolicyProgram
from services.policy.scoring import slices

PROMPT = [1, 2, 3]


@pytest.fixture
async def serving(random_omni: Path, other_omni: Path) -> AsyncIterator[InprocessHost]:
    settings = Settings(engine_slots=8, engine_max_tokens=128, engine_queue=64)
    host = InprocessHost({"policy": PolicyProgram(random_omni, settings)})
    for version, path in (("v1", other_omni), ("v0", random_omni)):
        await host.call("policy", {"op": "load", "version": version, "path": str(path)})
    await host.call("policy", {"op": "activate", "version": "v0"})
    yield host
    await host.close()


async def generate(host: InprocessHost, seed: int, **more: Any) -> tuple[list[int], list[float]]:
    sampling = {"seed": seed, "max_tokens": 60} | more.pop("sampling", {})
    tokens: list[int] = []
    logprobs: list[float] = []
    prompt = more.pop("prompt", PROMPT)
    async for answer in host.stream("policy", {"op": "generate", "prompt": prompt, "sampling": sampling, **more}):
        tokens.extend(int(token) for token in answer.get("tokens", []))
        logprobs.extend(float(value) for value in answer.get("logprobs", []))
    return tokens, logprobs


async def score(host: InprocessHost, *sequences: dict[str, Any], **more: Any) -> dict[str, Any]:
    return await host.call("policy", {"op": "score", "sequences": list(sequences), **more})


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_scores_are_what_the_engine_logged(serving: InprocessHost, temperature: float) -> None:
    kinds: list[list[str] | None] = [None, ["text"], ["text", "image"], ["audio"]]
    asked = [(seed, kind, [1, 2, 3, seed]) for seed, kind in enumerate(kinds * 3)]
    sampling = {"temperature": temperature, "max_tokens": 40}
    answers = await asyncio.gather(
        *(generate(serving, seed, modalities=kind, prompt=prompt, sampling=sampling) for seed, kind, prompt in asked)
    )
    sequences = [
        {"prompt": prompt, "output": tokens, "modalities": kind, "max_tokens": 40}
        for (_, kind, prompt), (tokens, _) in zip(asked, answers, strict=True)
    ]
    scored = await score(serving, *sequences, grammar=True)
    assert scored["version"] == "v0"
    for found, (_, logged) in zip(scored["logprobs"], answers, strict=True):
        assert found.tolist() == pytest.approx(logged, abs=1e-4)


async def test_without_the_grammar_they_are_the_bare_models(serving: InprocessHost, random_omni: Path) -> None:
    tokens, logged = await generate(serving, 3)
    scored = (await score(serving, {"prompt": PROMPT, "output": tokens}))["logprobs"][0]
    model = AutoModelForCausalLM.from_pretrained(random_omni, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT + tokens])).logits[0, len(PROMPT) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert scored.tolist() == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(bare <= masked + 1e-4 for bare, masked in zip(scored, logged, strict=True))


async def test_what_else_is_in_the_call_changes_nothing(serving: InprocessHost) -> None:
    sequences = [{"prompt": [5] * (n + 1), "output": [7, 8, 9][: 1 + n % 3] * (n + 1)} for n in range(24)]
    together = (await score(serving, *sequences))["logprobs"]
    for sequence, found in zip(sequences, together, strict=True):
        alone = (await score(serving, sequence))["logprobs"][0]
        assert len(found) == len(sequence["output"])
        assert found.tolist() == pytest.approx(alone.tolist(), abs=1e-4)


async def test_a_resident_version_is_scored_by_name(serving: InprocessHost) -> None:
    tokens, logged = await generate(serving, 1, version="v1")
    sequence = {"prompt": PROMPT, "output": tokens, "max_tokens": 60}
    pinned = await score(serving, sequence, version="v1", grammar=True)
    assert (pinned["version"], pinned["logprobs"][0].tolist()) == ("v1", pytest.approx(logged, abs=1e-4))
    other = await score(serving, sequence, grammar=True)
    assert other["logprobs"][0].tolist() != pytest.approx(logged, abs=1e-2)


async def test_what_the_grammar_forbids_has_no_probability(serving: InprocessHost, random_omni: Path) -> None:
    layout = SequenceLayout.load(random_omni)
    opening = next(iter(layout.codes.values())).open
    sequence = {"prompt": PROMPT, "output": [5, opening], "modalities": ["text"]}
    first, second = (await score(serving, sequence, grammar=True))["logprobs"][0]
    assert (math.isfinite(first), second) == (True, -math.inf)
    sequence["modalities"], sequence["max_tokens"] = None, 4  # no medium fits into the two tokens that are left
    assert (await score(serving, sequence, grammar=True))["logprobs"][0][1] == -math.inf


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"sequences": []}, "INVALID_ARGUMENT", "no sequences"),
        ({"sequences": [{"prompt": [], "output": [1]}]}, "INVALID_ARGUMENT", r"sequences\[0\] needs a prompt"),
        ({"sequences": [{"prompt": [1], "output": []}]}, "INVALID_ARGUMENT", "at least one token"),
        ({"sequences": [{"prompt": [1], "output": [10**6]}]}, "INVALID_ARGUMENT", "must be in"),
        ({"sequences": [{"prompt": [1] * 100, "output": [1] * 29}]}, "INVALID_ARGUMENT", "together hold 128"),
        ({"sequences": [{"prompt": [1], "output": [1]}] * 257}, "INVALID_ARGUMENT", "256 are allowed"),
        ({"sequences": [{"prompt": [1]}]}, "INVALID_ARGUMENT", "malformed"),
        (
            {"sequences": [{"prompt": [1], "output": [1], "modalities": ["smell"]}], "grammar": True},
            "INVALID_ARGUMENT",
            "smell",
        ),
        (
            {"sequences": [{"prompt": [1], "output": [1, 1], "max_tokens": 1}], "grammar": True},
            "INVALID_ARGUMENT",
            "over its max_tokens",
        ),
        ({"version": "v9"}, "NOT_FOUND", "v9"),
    ],
)
async def test_refusals_say_what_to_do(serving: InprocessHost, change: dict[str, Any], code: str, words: str) -> None:
    request = {"op": "score", "sequences": [{"prompt": [1], "output": [1]}], **change}
    with pytest.raises(HostError, match=words) as refused:
        await serving.call("policy", request)
    assert refused.value.code == code


async def test_too_many_tokens_in_one_call_are_refused(serving: InprocessHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "MAX_TOKENS", 100)
    with pytest.raises(HostError, match="102 tokens in one call, 100 are allowed"):
        await score(serving, {"prompt": [1] * 50, "output": [1]}, {"prompt": [1] * 50, "output": [1]})


async def test_too_many_tokens_are_refused_before_one_is_looked_at(
    serving: InprocessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "MAX_TOKENS", 100)
    with pytest.raises(HostError, match="102 tokens in one call"):
        await score(serving, {"prompt": [10**9] * 50, "output": [1]}, {"prompt": [1] * 50, "output": [1]})


async def test_the_grammar_is_walked_on_the_scorers_thread(
    serving: InprocessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    walkers = set()
    advance = AnswerState.advance

    def watched(state: AnswerState, token: int) -> None:
        walkers.add(threading.current_thread().name)
        advance(state, token)

    monkeypatch.setattr(AnswerState, "advance", watched)
    await score(serving, {"prompt": PROMPT, "output": [5, 6]}, grammar=True)
    assert walkers == {"policy-scorer"}


async def test_an_answer_that_cannot_be_sent_ends_no_other(random_omni: Path) -> None:
    program = PolicyProgram(random_omni, Settings(engine_slots=2, engine_max_tokens=64))
    request = {"op": "score", "sequences": [{"prompt": [1], "output": [2]}]}
    answers: queue.Queue[dict[str, Any]] = queue.Queue()

    def broken(answer: dict[str, Any], final: bool) -> None:
        raise BrokenPipeError

    program.submit(request, broken)
    program.submit(request, lambda answer, final: answers.put(answer))
    assert answers.get(timeout=10)["error"]["code"] == "UNAVAILABLE"  # no weights; the thread lives
    program.close()


async def test_without_weights_nothing_is_scored(random_omni: Path) -> None:
    host = InprocessHost({"policy": PolicyProgram(random_omni, Settings(engine_slots=2, engine_max_tokens=64))})
    with pytest.raises(HostError) as refused:
        await score(host, {"prompt": [1], "output": [2]})
    assert (refused.value.code, refused.value.retriable) == ("UNAVAILABLE", True)
    await host.close()


async def test_weights_that_overflow_give_an_error_and_no_nan(
    serving: InprocessHost, random_omni: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(random_omni, tmp_path / "bad"))
    file = bad / "model.safetensors"
    tensors = load_file(file)
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, file, metadata={"format": "pt"})
    await serving.call("policy", {"op": "load", "version": "bad", "path": str(bad)})
    sequence = {"prompt": PROMPT, "output": [4, 5, 6]}
    with pytest.raises(HostError, match="bad computes numbers that are not finite") as refused:
        await score(serving, sequence, version="bad")
    assert refused.value.code == "INTERNAL"
    assert (await score(serving, sequence, version="v0"))["version"] == "v0"


async def test_a_version_that_is_scored_stays_until_the_scores_are_there(serving: InprocessHost) -> None:
    sequences = [{"prompt": [1] * 60, "output": [2] * 60}] * 200
    scoring_call = asyncio.create_task(score(serving, *sequences, version="v1"))
    while True:
        status = await serving.call("policy", {"op": "status"})
        if {w["version"]: w["running_requests"] for w in status["weights"]}.get("v1"):
            break
    await serving.call("policy", {"op": "unload", "version": "v1"})
    assert len((await scoring_call)["logprobs"]) == 200
    await until_resident(serving, ["v0"])


async def test_a_deadline_ends_a_long_call_between_two_slices(serving: InprocessHost) -> None:
    sequences = [{"prompt": [1] * 60, "output": [2] * 60}] * 256
    with pytest.raises(HostError) as late:
        await serving.call("policy", {"op": "score", "sequences": sequences, "version": "v1"}, timeout=0.02)
    assert late.value.code == "DEADLINE_EXCEEDED"
    await serving.call("policy", {"op": "unload", "version": "v1"})
    await until_resident(serving, ["v0"])


async def test_streams_go_on_between_the_slices_of_a_long_call(
    serving: InprocessHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_may_run_apart", lambda weights: False)
    stream = serving.stream(
        "policy",
        {"op": "generate", "prompt": PROMPT, "modalities": ["text"], "sampling": {"seed": 2, "max_tokens": 100}},
    )
    await anext(stream)
    long_call = asyncio.create_task(score(serving, *[{"prompt": [1] * 60, "output": [2] * 60}] * 256))
    async for _ in stream:
        pass
    assert not long_call.done()  # 128 slices, and a step after each: the stream's 100 tokens come first
    assert len((await long_call)["logprobs"]) == 256


async def test_both_ways_to_run_give_the_same_scores(serving: InprocessHost, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = await generate(serving, 3)
    sequences = [{"prompt": PROMPT, "output": tokens[: n + 1]} for n in range(10)]
    streams = [asyncio.create_task(generate(serving, seed)) for seed in range(4)]
    apart = (await score(serving, *sequences))["logprobs"]
    monkeypatch.setattr(scoring, "_may_run_apart", lambda weights: False)
    between = (await score(serving, *sequences))["logprobs"]
    assert [list(one) for one in apart] == [list(one) for one in between]
    assert all(len(answer) == len(logged) > 0 for answer, logged in await asyncio.gather(*streams))


async def until_resident(host: InprocessHost, versions: list[str]) -> None:
    async with asyncio.timeout(10):
        while True:
            status = await host.call("policy", {"op": "status"})
            if [weights["version"] for weights in status["weights"]] == versions:
                return


def test_slices_hold_alike_lengths_and_no_more_than_their_tokens() -> None:
    assert slices([100, 10, 300, 100, 100, 20]) == [[1, 5], [0, 3], [4], [2]]
    assert slices([64] * 5) == [[0, 1, 2, 3], [4]]
