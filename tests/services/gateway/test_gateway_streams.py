"""Streams on the wire, and what a client that goes away leaves behind: nothing."""

import asyncio
import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protos.anyloop.v1 import policy_pb2, types_pb2
from services.gateway.dataplane import DataPlane
from services.gateway.keys import KeyRing
from services.outbox import open_outbox
from tests.models.random_omni import build_random_omni


def events_of(text: str) -> list[Any]:
    lines = text.split("\n\n")
    assert lines[-1] == ""
    assert all(line.startswith("data: ") for line in lines[:-1])
    assert lines[-2] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_every_event_is_a_data_line_and_the_last_is_done(world: Any, fake: ModuleType) -> None:
    reply = await world.say("hello", stream=True, modalities=["text", "image", "audio"])
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["cache-control"] == "no-cache"
    chunks = events_of(reply.text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content") or "" for delta in deltas) == "you said hello"
    assert [delta["content_parts"][0]["type"] for delta in deltas if "content_parts" in delta] == [
        "image_url",
        "audio_url",
    ]
    assert [set(delta) for delta in deltas if "audio" in delta] == [{"content_parts", "audio"}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {fake.VERSION}
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_failure_in_mid_stream_is_an_error_event_before_done(world: Any) -> None:
    chunks = events_of((await world.say("break off", stream=True)).text)
    assert chunks[1]["choices"][0]["delta"]["content"] == "so far"
    assert chunks[-1]["error"]["type"] == "server_error"


async def test_an_answer_cut_at_the_limit_says_length(world: Any) -> None:
    assert (await world.say("cut")).json()["choices"][0]["finish_reason"] == "length"


async def test_log_probabilities_name_tokens_by_their_text(start: Any, tmp_path: Path) -> None:
    world = await start(model_dir=build_random_omni(tmp_path / "model"))
    whole = (await world.say("hello", logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in whole] == [-0.5] * 3
    assert all(token["bytes"] == list(token["token"].encode()) and token["top_logprobs"] == [] for token in whole)
    chunks = events_of((await world.say("hello", logprobs=True, stream=True)).text)
    streamed = [each for chunk in chunks for each in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert streamed == whole


async def test_a_client_that_leaves_a_stream_cancels_the_answer(world: Any) -> None:
    body = {"messages": [{"role": "user", "content": "forever"}], "stream": True, "n": 2}
    async with world.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        async for line in reply.aiter_lines():
            if '"on "' in line:
                break
    await asyncio.wait_for(world.policy.cancelled.wait(), 5)
    await _until_idle(world)


async def test_a_client_that_stops_waiting_cancels_the_answer(world: Any) -> None:
    waiting = asyncio.create_task(world.say("silence"))
    await world.policy.asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(world.policy.cancelled.wait(), 5)
    await _until_idle(world)


async def _until_idle(world: Any) -> None:
    for _ in range(100):
        if (await world.http.get("/v1/loop")).json()["gateway"]["requests_running"] == 0:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the gateway still counts a request as running")


async def test_store_false_and_metadata_reach_the_policy(world: Any) -> None:
    await world.say("hello", store=False, metadata={"page": "7"}, max_completion_tokens=9, top_p=0.5, seed=-1)
    request = world.policy.requests[0]
    assert request.unlogged
    assert dict(request.metadata) == {"page": "7"}
    assert (request.sampling.max_tokens, request.sampling.top_p, request.sampling.seed) == (9, 0.5, 2**64 - 1)
    assert not request.sampling.HasField("temperature")


async def test_who_is_cancelled_twice_leaves_no_answer_behind(world: Any, tmp_path: Path) -> None:
    settings = world.settings.model_copy(update={"home": tmp_path / "other"})
    outbox = open_outbox(settings, "gateway", "never")
    plane = DataPlane(settings, world.log, outbox, world.store, KeyRing(local=True))
    noting, noted = threading.Event(), threading.Event()

    def note(rows: Any, positions: Any = None) -> None:
        noting.set()
        noted.wait(10.0)

    plane.ledger.add_responses = note  # type: ignore[method-assign]
    says = types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="forever")])
    request = policy_pb2.GenerateRequest(response_id="r", conversation_id="r", messages=[says])

    async def read() -> None:
        async for _ in plane.stream(request):
            pass

    reading = asyncio.create_task(read())
    assert await asyncio.to_thread(noting.wait, 5.0)
    reading.cancel()
    await asyncio.wait_for(world.policy.cancelled.wait(), 5)
    assert plane.running == 1  # it waits for the ledger
    reading.cancel()
    await asyncio.wait([reading])
    assert plane.running == 0
    noted.set()
    await plane.close()
    outbox.close()
