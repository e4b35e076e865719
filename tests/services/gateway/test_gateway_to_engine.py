"""The gateway in front of a real replica: a socket that closes in mid-stream frees the slot in the engine."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from anyloop.log import RESPONSES
from anyloop.sequence import SequenceLayout
from services.gateway.server import _listen, serve
from tests.models.random_omni import build_random_omni
from tests.services.running_replica import Running, running, settings_for


@dataclass
class Stack:
    policy: Running
    port: int


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """One slot, and a model of which a long answer takes a second or two."""
    model = build_random_omni(tmp_path / "model", hidden=768)
    settings = settings_for(tmp_path / "home", model, engine_slots=1, engine_queue=4, engine_max_tokens=500)
    async with running(settings) as policy:
        with socket.create_server(("127.0.0.1", 0)) as probe, socket.create_server(("127.0.0.1", 0)) as other:
            port, edge = probe.getsockname()[1], other.getsockname()[1]
        behind = policy.settings.model_copy(
            update={
                "gateway_port": port,
                "edge_grpc_port": edge,
                "policy_target": f"127.0.0.1:{policy.replica.port}",
                "policy_control_target": f"127.0.0.1:{policy.replica.control_port}",
            }
        )
        stop = asyncio.Event()
        gateway = asyncio.create_task(serve(behind, stop))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            for _ in range(200):
                try:
                    if (await http.get("/ready")).is_success:
                        break
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.02)
        yield Stack(policy, port)
        stop.set()
        await gateway


async def stream(stack: Stack, max_tokens: int = 450) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", stack.port)
    body = {
        "messages": [{"role": "user", "content": "Go on"}],
        "stream": True,
        "modalities": ["text"],
        "max_tokens": max_tokens,
        "logit_bias": {str(SequenceLayout.load(stack.policy.settings.model_dir).end): -100},
    }
    data = json.dumps(body).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    )
    writer.write(head % len(data) + data)
    return reader, writer


async def test_a_socket_that_closes_in_mid_stream_frees_the_slot_for_who_waits(stack: Stack) -> None:
    reader, writer = await stream(stack)
    await reader.readuntil(b'"role"')
    waiting, other = await stream(stack, 1)
    await stack.policy.until(lambda status: status.requests_waiting == 1)
    writer.close()
    await waiting.readuntil(b"[DONE]")
    await stack.policy.until(lambda status: not status.requests_running)
    other.close()
    cut, whole = await stack.policy.events(RESPONSES, 2)
    assert 0 < len(cut.output_token_ids) < 450  # what had been said when it was left
    assert len(whole.output_token_ids) == 1


async def test_a_socket_that_closes_in_the_queue_is_not_answered(stack: Stack) -> None:
    reader, writer = await stream(stack)
    await reader.readuntil(b'"role"')
    _, other = await stream(stack)
    await stack.policy.until(lambda status: status.requests_waiting == 1)
    other.close()
    await stack.policy.until(lambda status: not status.requests_waiting)
    writer.close()
    await stack.policy.until(lambda status: not status.requests_running)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_bias_beyond_the_vocabulary_is_refused_by_the_fields_name(stack: Stack, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"1000000": 1}, "stream": stream}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{stack.port}", trust_env=False) as http:
        reply = await http.post("/v1/chat/completions", json=body)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", "logit_bias")
    assert "1000000" in error["message"]


def test_chunks_do_not_wait_for_acknowledgements() -> None:
    with (
        _listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        accepted, _ = listener.accept()
        with accepted:
            assert client.fileno() != accepted.fileno()
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
