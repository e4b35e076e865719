"""The request protocol of the policy model, in process: streams, swaps under load, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from anyloop.config import Settings
from anyloop.sequence import Sequencer
from services.hosts.inprocess_host import InprocessHost
from services.hosts.interface import HostError
from services.policy.program import PolicyProgram
from services.policy.requests import RequestReader
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return [build_random_omni(root / f"v{seed}", seed) for seed in range(3)]


@pytest.fixture
async def host(checkpoints: list[Path]) -> AsyncIterator[InprocessHost]:
    settings = Settings(engine_slots=8, engine_max_tokens=128, engine_queue=32)
    host = InprocessHost({"policy": PolicyProgram(checkpoints[0], settings)})
    yield host
    await host.close()


@pytest.fixture
async def serving(host: InprocessHost, checkpoints: list[Path]) -> InprocessHost:
    await _load(host, checkpoints[0], "v0")
    await host.call("policy", {"op": "activate", "version": "v0"})
    return host


async def _load(host: InprocessHost, path: Path, version: str) -> dict[str, Any]:
    return await host.call("policy", {"op": "load", "version": version, "path": str(path)})


def _generate(seed: int = 0, max_tokens: int = 40, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": max_tokens}
    return {"op": "generate", "request_id": str(seed), "prompt": [1, 2, 3], "sampling": sampling, **more}


async def _answer(host: InprocessHost, request: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    tokens: list[int] = []
    async for answer in host.stream("policy", request):
        assert len(answer.get("tokens", [])) == len(answer.get("logprobs", []))
        tokens.extend(answer.get("tokens", []))
    return tokens, answer


async def test_a_stream_ends_with_its_spans_and_the_sampling_as_resolved(serving: InprocessHost) -> None:
    tokens, last = await _answer(serving, _generate(modalities=["text"], max_tokens=20))
    assert last["finished"] in ("stop", "length")
    assert last["version_spans"] == [["v0", 0, len(tokens)]]
    assert (
        last["sampling"].items() >= {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0, "max_tokens": 20}.items()
    )


async def test_the_seed_that_was_drawn_repeats_an_answer(serving: InprocessHost) -> None:
    request = _generate()
    del request["sampling"]["seed"]
    tokens, last = await _answer(serving, request)
    again, _ = await _answer(serving, _generate(seed=last["sampling"]["seed"]))
    assert again == tokens


async def test_a_program_without_weights_is_unavailable(host: InprocessHost) -> None:
    with pytest.raises(HostError) as refused:
        await _answer(host, _generate())
    assert (refused.value.code, refused.value.retriable) == ("UNAVAILABLE", True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [1] * 128}, "shorten it"),
        ({"prompt": [10**6]}, "token ids must be in"),
        ({"prompt": ["a"]}, "malformed"),
        ({"modalities": ["smell"]}, "does not answer in 'smell'"),
        ({"sampling": {"temperature": "hot"}}, "malformed"),
        ({"sampling": {"top_p": 2}}, "top_p must be in"),
        ({"sampling": {"stop": [""]}}, "stop takes up to"),
        ({"sampling": {"min_p": -0.5}}, r"min_p must be in \[0, 1\], not -0.5"),
        ({"sampling": {"repetition_penalty": 0}}, r"repetition_penalty must be in \(0, 100\], not 0.0"),
        ({"sampling": {"top_logprobs": 21}}, r"top_logprobs must be in \[0, 20\], not 21"),
        ({"sampling": {"logit_bias": {"5": 101}}}, r"logit_bias\[5\] must be in \[-100, 100\], not 101.0"),
        ({"sampling": {"logit_bias": {"100000": 1}}}, "logit_bias names token 100000"),
        ({"sampling": {"logit_bias": [1, 2]}}, "malformed"),
        ({"op": "dance"}, "unknown op 'dance'"),
    ],
)
async def test_malformed_requests_say_what_to_do(serving: InprocessHost, change: dict[str, Any], message: str) -> None:
    with pytest.raises(HostError, match=message) as refused:
        await _answer(serving, {**_generate(), **change})
    assert refused.value.code == "INVALID_ARGUMENT"


async def test_alternatives_come_with_every_token_where_asked_for(serving: InprocessHost) -> None:
    request = _generate(modalities=["text"], max_tokens=12)
    request["sampling"] |= {"temperature": 0.0, "top_logprobs": 3}
    seen = 0
    async for answer in serving.stream("policy", request):
        assert len(answer.get("top", [])) == len(answer.get("tokens", []))
        for token, logprob, top in zip(*(answer.get(name, []) for name in ("tokens", "logprobs", "top")), strict=True):
            assert len(top) == 3
            assert top[0][0] == token  # greedy takes the likeliest
            assert top[0][1] == pytest.approx(logprob, abs=1e-5)
            assert top[0][1] >= top[1][1] >= top[2][1]
            seen += 1
    assert seen


async def test_a_bias_chooses_among_what_the_grammar_allows(serving: InprocessHost) -> None:
    request = _generate(modalities=["text"], max_tokens=8)
    request["sampling"]["logit_bias"] = {"65": 100.0}
    tokens, last = await _answer(serving, request)
    assert tokens == [65] * 8
    assert last["finished"] == "length"


def test_a_checkpoints_generation_config_gives_the_defaults(checkpoints: list[Path], tmp_path: Path) -> None:
    model_dir = Path(shutil.copytree(checkpoints[0], tmp_path / "model"))
    config = {"min_p": 0.25, "repetition_penalty": 1.5, "top_k": 9, "do_sample": True}
    (model_dir / "generation_config.json").write_text(json.dumps(config))
    reader = RequestReader(model_dir, 128)
    taken = reader.request(_generate()).sampling
    assert (taken.min_p, taken.repetition_penalty, taken.top_k) == (0.25, 1.5, 9)
    asked = reader.request({**_generate(), "sampling": {"min_p": 0.0, "repetition_penalty": 1.0}}).sampling
    assert (asked.min_p, asked.repetition_penalty, asked.top_k) == (0.0, 1.0, 9)


async def test_closing_the_stream_cancels_in_the_engine(serving: InprocessHost) -> None:
    stream = serving.stream("policy", _generate(max_tokens=120, modalities=["text"]))
    await anext(stream)
    await stream.aclose()
    for _ in range(100):
        status = await serving.call("policy", {"op": "status"})
        if not status["requests_running"]:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the request still runs a second after its stream was closed")


async def test_a_deadline_cancels_and_says_so(serving: InprocessHost) -> None:
    with pytest.raises(HostError) as late:
        async for _ in serving.stream("policy", _generate(max_tokens=120, modalities=["text"]), timeout=0.001):
            pass
    assert late.value.code == "DEADLINE_EXCEEDED"


async def test_a_stop_string_ends_the_answer(serving: InprocessHost, checkpoints: list[Path]) -> None:
    request = _generate(modalities=["text"])
    tokens, _ = await _answer(serving, request)
    decode = Sequencer.from_pretrained(checkpoints[0]).decode_text
    texts = [decode(tokens[: end + 1]) for end in range(len(tokens))]
    stop = next(text for text in (decode([token]) for token in tokens[3:]) if text.isascii() and text.strip())
    request["sampling"]["stop"] = [stop]
    stopped, last = await _answer(serving, request)
    first = next(end for end, text in enumerate(texts) if stop in text)
    assert stopped == tokens[: first + 1]
    assert (last["finished"], last["stopped_by"]) == ("stop", stop)


@pytest.mark.parametrize("mode", ["finish", "keep", "recompute"])
async def test_a_swap_under_load_drops_and_garbles_nothing(
    serving: InprocessHost, checkpoints: list[Path], mode: str
) -> None:
    sequencer = Sequencer.from_pretrained(checkpoints[0])
    answers: list[tuple[list[int], dict[str, Any]]] = []
    stopping = asyncio.Event()
    answered_by = {version: asyncio.Event() for version in ("v0", "v1", "v2")}

    async def client(number: int) -> None:
        seed = number * 1000
        while not stopping.is_set():
            answers.append(await _answer(serving, _generate(seed=seed, max_tokens=60)))
            for version, _, _ in answers[-1][1]["version_spans"]:
                answered_by[version].set()
            seed += 1

    clients = [asyncio.create_task(client(number)) for number in range(6)]
    await answered_by["v0"].wait()
    for version in ("v1", "v2"):
        await _load(serving, checkpoints[int(version[1])], version)
        swap = await serving.call("policy", {"op": "activate", "version": version, "mode": mode})
        assert swap["stall_seconds"] < 2.0  # on a machine that is busy elsewhere
        await answered_by[version].wait()
    stopping.set()
    await asyncio.gather(*clients)
    seen = set()
    for tokens, last in answers:
        assert last["finished"] in ("stop", "length")
        spans = last["version_spans"]
        assert [begin for _, begin, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
        assert spans[-1][2] == len(tokens)
        assert mode != "finish" or len(spans) == 1
        seen |= {version for version, _, _ in spans}
        assert sequencer.parse(tokens)
    assert seen == {"v0", "v1", "v2"}
    status = await serving.call("policy", {"op": "status"})
    assert [weights["version"] for weights in status["weights"]] == ["v2"]


async def test_a_refused_checkpoint_leaves_the_old_weights_serving(
    serving: InprocessHost, checkpoints: list[Path], tmp_path: Path
) -> None:
    expected, _ = await _answer(serving, _generate())
    wide = build_random_omni(tmp_path / "wide", hidden=48)
    for path, digest in ((wide, ""), (checkpoints[1], "0" * 64), (tmp_path / "nowhere", "")):
        with pytest.raises(HostError) as refused:
            await serving.call("policy", {"op": "load", "version": "v1", "path": str(path), "digest": digest})
        assert refused.value.code == "FAILED_PRECONDITION"
    with pytest.raises(HostError) as unknown:
        await serving.call("policy", {"op": "activate", "version": "v1"})
    assert unknown.value.code == "NOT_FOUND"
    status = await serving.call("policy", {"op": "status"})
    assert status["serving_version"] == "v0"
    assert (await _answer(serving, _generate()))[0] == expected


async def test_loading_a_resident_version_again_is_free(serving: InprocessHost, checkpoints: list[Path]) -> None:
    loaded = await _load(serving, checkpoints[1], "v1")
    request = {"op": "load", "version": "v1", "path": str(checkpoints[1]), "digest": loaded["digest"]}
    assert await serving.call("policy", request) == {"digest": loaded["digest"], "load_seconds": 0.0}


async def test_a_pinned_request_answers_from_the_staged_version(
    serving: InprocessHost, checkpoints: list[Path]
) -> None:
    await _load(serving, checkpoints[1], "v1")
    _, last = await _answer(serving, _generate(version="v1"))
    assert {version for version, _, _ in last["version_spans"]} == {"v1"}
    await serving.call("policy", {"op": "unload", "version": "v1"})
    with pytest.raises(HostError) as unknown:
        await _answer(serving, _generate(version="v1"))
    assert unknown.value.code == "NOT_FOUND"


async def test_more_requests_than_queue_places_are_refused_not_lost(serving: InprocessHost) -> None:
    requests = [_answer(serving, _generate(seed=seed, max_tokens=100, modalities=["text"])) for seed in range(64)]
    results = await asyncio.gather(*requests, return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, HostError) and error.code == "RESOURCE_EXHAUSTED" for error in refused)
    assert len(results) - len(refused) >= 8


async def test_closing_the_program_ends_running_streams(checkpoints: list[Path]) -> None:
    program = PolicyProgram(checkpoints[0], Settings(engine_slots=2, engine_max_tokens=128))
    host = InprocessHost({"policy": program})
    await _load(host, checkpoints[0], "v0")
    await host.call("policy", {"op": "activate", "version": "v0"})
    stream = host.stream("policy", _generate(max_tokens=120, modalities=["text"]))
    async with contextlib.aclosing(stream):
        await anext(stream)
        closing = asyncio.create_task(host.close())
        with contextlib.suppress(HostError):  # it may have ended by itself just before
            async for _ in stream:
                pass
        await asyncio.wait_for(closing, 5.0)


async def test_the_status_states_the_memory_of_the_cache_and_what_prompts_share(serving: InprocessHost) -> None:
    long = [place % 90 for place in range(31)]
    await _answer(serving, _generate(prompt=long))
    await _answer(serving, _generate(seed=1, prompt=long))
    status = await serving.call("policy", {"op": "status"})
    assert status["forward"] == "fused"
    # keys and values, 2 layers, 8 slots and 8 prefix rows, 2 heads of 16 float32 numbers, 128 tokens
    assert status["cache_bytes"] == 2 * 2 * (8 + 8) * 2 * 16 * 4 * 128
    assert status["reused_prompt_tokens"] == 30  # all but the last token, which the decode step reads
