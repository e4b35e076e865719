"""Who goes away frees what it held, in a real Triton: one stream, a whole replica, a client that knows no sessions."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc.aio import InferenceServerClient

from anyloop.sequence import SequenceLayout
from services.hosts.interface import HostError
from services.hosts.triton_host import TritonHost
from services.hosts.triton_messages import message_to, payload_of
from services.triton.launcher import TritonPorts, TritonServer
from tests.models.random_omni import build_random_omni

pytestmark = pytest.mark.e2e
LONG = 480  # tokens
WITNESS = 240  # tokens of a request that stays: what is left ends before it, or runs on for as long again
END = SequenceLayout.build(320, {}).end  # of the random model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("checkpoint") / "v0", hidden=768)


def _server(directory: Path, checkpoint: Path, ports: TritonPorts) -> TritonServer:
    settings = {
        "ANYLOOP_MODEL_DIR": str(checkpoint),
        "ANYLOOP_ENGINE_SLOTS": "8",
        "ANYLOOP_ENGINE_MAX_TOKENS": "512",
    }
    return TritonServer(directory, ["policy"], ports, settings=settings)


def _free_ports() -> TritonPorts:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return TritonPorts(*ports)


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with _server(tmp_path_factory.mktemp("triton"), checkpoint, _free_ports()) as server:
        asyncio.run(_activate(server.grpc_url, checkpoint))
        yield server


@pytest.fixture
async def host(server: TritonServer) -> AsyncIterator[TritonHost]:
    host = TritonHost(server.grpc_url, ["policy"])
    yield host
    await host.close()


async def _activate(url: str, checkpoint: Path) -> None:
    host = TritonHost(url, ["policy"])
    await host.call("policy", {"op": "load", "version": "v0", "path": str(checkpoint)}, timeout=30)
    await host.call("policy", {"op": "activate", "version": "v0"}, timeout=30)
    await host.close()


def _generate(seed: int, max_tokens: int = LONG) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": max_tokens, "logit_bias": {END: -100.0}}
    return {"op": "generate", "prompt": [1, 2, 3], "sampling": sampling, "modalities": ["text"]}


async def _requests(host: TritonHost) -> tuple[int, int]:
    """How many run and how many wait."""
    status = await host.call("policy", {"op": "status"}, timeout=10)
    return int(status["requests_running"]), int(status["requests_waiting"])


async def _witness(host: TritonHost) -> AsyncGenerator[dict[str, Any], None]:
    """A request that has begun. The engine steps all that run together, so it counts their tokens, not seconds."""
    witness = host.stream("policy", _generate(99, WITNESS))
    await anext(witness)
    return witness


async def _nothing_outlives(witness: AsyncGenerator[dict[str, Any], None], host: TritonHost) -> None:
    answers = [answer async for answer in witness]
    assert answers[-1]["finished"] == "length"
    assert await _requests(host) == (0, 0)


async def test_a_stream_that_is_left_frees_its_slot_at_once(host: TritonHost) -> None:
    witness = await _witness(host)
    stream = host.stream("policy", _generate(2))
    await anext(stream)
    await stream.aclose()
    await _nothing_outlives(witness, host)


async def test_what_waits_in_the_queue_is_cancelled_too(host: TritonHost) -> None:
    witness = await _witness(host)
    running = [asyncio.create_task(_count(host, _generate(seed))) for seed in range(7)]
    with pytest.raises(HostError) as late:
        async for _ in host.stream("policy", _generate(9), timeout=0.05):
            pass
    assert late.value.code == "DEADLINE_EXCEEDED"
    requests = await _requests(host)
    while requests[1]:
        requests = await _requests(host)
    assert requests == (8, 0)  # it went before a slot was free
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await _nothing_outlives(witness, host)


async def test_a_replica_that_dies_takes_its_requests_with_it(server: TritonServer, host: TritonHost) -> None:
    witness = await _witness(host)
    replica = TritonHost(server.grpc_url, ["policy"])
    streams = [replica.stream("policy", _generate(seed)) for seed in range(7)]
    await asyncio.gather(*(anext(stream) for stream in streams))
    await replica._client.close()  # its connection goes, and nobody says cancel
    await _nothing_outlives(witness, host)
    await replica.close()
    for stream in streams:
        await stream.aclose()


async def test_a_client_without_sessions_streams_and_is_cancelled(server: TritonServer, host: TritonHost) -> None:
    client = InferenceServerClient(server.grpc_url)
    stay = asyncio.Event()

    async def inputs(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        yield message_to("policy", request)
        await stay.wait()

    tokens = 0
    async for result, error in client.stream_infer(inputs(_generate(3, 20))):
        assert error is None
        answer = payload_of(result)
        assert answer is not None
        tokens += len(answer.get("tokens", ()))
        if "finished" in answer:
            break
    assert answer["version_spans"] == [["v0", 0, tokens]]
    witness = await _witness(host)
    responses = client.stream_infer(inputs(_generate(4)))
    await anext(responses)
    assert await _requests(host) == (2, 0)
    responses.cancel()
    await _nothing_outlives(witness, host)  # it is asked for every 20 ms
    stay.set()
    await client.close()


async def test_streams_of_a_server_that_died_may_be_tried_again(checkpoint: Path, tmp_path: Path) -> None:
    ports = _free_ports()
    first, second = _server(tmp_path / "first", checkpoint, ports), _server(tmp_path / "second", checkpoint, ports)
    await asyncio.to_thread(first.__enter__)
    host = TritonHost(first.grpc_url, ["policy"])
    await _activate(first.grpc_url, checkpoint)
    stream = host.stream("policy", _generate(1))
    await anext(stream)
    await asyncio.to_thread(first.stop, 0.0)  # no grace: killed
    with pytest.raises(HostError) as lost:
        async for _ in stream:
            pass
    assert (lost.value.code, lost.value.retriable) == ("UNAVAILABLE", True)
    with pytest.raises(HostError):  # nobody there: refused at once, not waited for
        await anext(host.stream("policy", _generate(1)))
    await asyncio.to_thread(second.__enter__)
    try:
        await _retried(lambda: _activate(second.grpc_url, checkpoint))
        _, last = await _retried(lambda: _count(host, _generate(1, 20)))
        assert last["finished"] in ("stop", "length")
    finally:
        await host.close()
        await asyncio.to_thread(second.stop)


async def _retried(action: Callable[[], Awaitable[Any]]) -> Any:
    """The channel looks for a server that was away once a second."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await action()
            except HostError as error:
                if not error.retriable:
                    raise
            await asyncio.sleep(0.05)


async def _count(host: TritonHost, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    tokens = 0
    async for answer in host.stream("policy", request):
        tokens += len(answer.get("tokens", ()))
    return tokens, answer
