"""The real Triton binary with a random tiny model: streams, cancels, swaps, refuses, stops."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.hosts.interface import HostError
from services.hosts.triton_host import TritonHost
from services.triton.launcher import TritonPorts, TritonServer
from tests.models.random_omni import build_random_omni

pytestmark = pytest.mark.e2e
MODELS = ("policy", "decoder_image", "decoder_audio")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(server.getsockname()[1]) for server in sockets]
    for server in sockets:
        server.close()
    return ports


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return [build_random_omni(root / f"v{seed}", seed) for seed in range(2)]


@pytest.fixture(scope="module")
def server(checkpoints: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    ports = TritonPorts(*_free_ports(3))
    settings = {"ANYLOOP_MODEL_DIR": str(checkpoints[0]), "ANYLOOP_ENGINE_SLOTS": "8"}
    with TritonServer(tmp_path_factory.mktemp("triton"), MODELS, ports, settings=settings) as server:
        yield server


def _generate(seed: int, max_tokens: int = 60, **more: Any) -> dict[str, Any]:
    sampling = {"temperature": 1.0, "seed": seed, "max_tokens": max_tokens}
    return {"op": "generate", "request_id": str(seed), "prompt": [1, 2, 3], "sampling": sampling, **more}


async def _answer(host: TritonHost, request: dict[str, Any]) -> tuple[list[int], dict[str, Any]]:
    tokens: list[int] = []
    async for answer in host.stream("policy", request):
        tokens.extend(answer.get("tokens", []))
    return tokens, answer


async def _load_and_activate(host: TritonHost, path: Path, version: str) -> dict[str, Any]:
    await host.call("policy", {"op": "load", "version": version, "path": str(path)})
    return await host.call("policy", {"op": "activate", "version": version})


async def test_triton_streams_cancels_swaps_and_refuses(
    server: TritonServer, checkpoints: list[Path], tmp_path: Path
) -> None:
    host = TritonHost(server.grpc_url, MODELS)
    assert await host.ready()
    with pytest.raises(HostError) as nothing:
        await _answer(host, _generate(0))
    assert nothing.value.code == "UNAVAILABLE"
    await _load_and_activate(host, checkpoints[0], "v0")

    # Streams: the same seed gives the same answer alone and among others.
    alone, last = await _answer(host, _generate(0))
    assert last["version_spans"] == [["v0", 0, len(alone)]]
    answers = await asyncio.gather(*[_answer(host, _generate(seed)) for seed in range(12)])
    assert answers[0][0] == alone

    # Scores: what was sampled, as it was logged.
    sampled = [reply async for reply in host.stream("policy", _generate(0))]
    logged = [float(value) for reply in sampled for value in reply.get("logprobs", [])]
    sequence = {"prompt": [1, 2, 3], "output": alone, "max_tokens": 60}
    scored = await host.call("policy", {"op": "score", "sequences": [sequence] * 3, "grammar": True})
    assert (scored["version"], len(scored["logprobs"])) == ("v0", 3)
    assert np.allclose(scored["logprobs"], [logged] * 3, atol=1e-4)

    # Cancels: the engine is free soon after the client has gone.
    stream = host.stream("policy", _generate(1, 300, modalities=["text"]))
    await anext(stream)
    await stream.aclose()
    until = time.monotonic() + 5.0
    while (await host.call("policy", {"op": "status"}))["requests_running"]:
        assert time.monotonic() < until
        await asyncio.sleep(0.01)
    with pytest.raises(HostError) as late:
        await _answer_within(host, _generate(1, 300, modalities=["text"]), 0.02)
    assert late.value.code == "DEADLINE_EXCEEDED"

    # Refuses: the old weights go on.
    wide = build_random_omni(tmp_path / "wide", hidden=48)
    with pytest.raises(HostError) as refused:
        await host.call("policy", {"op": "load", "version": "v1", "path": str(wide)})
    assert refused.value.code == "FAILED_PRECONDITION"

    # Swaps under load: nothing dropped, and both versions answered.
    running = [asyncio.create_task(_answer(host, _generate(seed, 200))) for seed in range(8)]
    await asyncio.sleep(0.05)
    swap = await _load_and_activate(host, checkpoints[1], "v1")
    assert swap["previous"] == "v0"
    assert swap["stall_seconds"] < 2.0  # on a machine that is busy elsewhere
    after = await _answer(host, _generate(0))
    for tokens, last in [*await asyncio.gather(*running), after]:
        assert last["finished"] in ("stop", "length")
        assert last["version_spans"][-1][2] == len(tokens)
    assert after[1]["version_spans"][0][0] == "v1"
    await host.close()


async def _answer_within(host: TritonHost, request: dict[str, Any], seconds: float) -> None:
    async for _ in host.stream("policy", request, timeout=seconds):
        pass


async def test_triton_runs_the_codecs(server: TritonServer) -> None:
    host = TritonHost(server.grpc_url, MODELS)
    for model, codes, shape in (("decoder_image", 16, (64, 64, 3)), ("decoder_audio", 12, (6144,))):
        decoded = await host.call(model, {"op": "decode", "codes": list(range(codes))})
        assert decoded["data"].shape == shape
        encoded = await host.call(model, {"op": "encode", "data": np.asarray(decoded["data"])})
        assert len(encoded["codes"]) == codes
        with pytest.raises(HostError) as refused:
            await host.call(model, {"op": "decode", "codes": [1]})
        assert refused.value.code == "INVALID_ARGUMENT"
    with pytest.raises(HostError, match="decoder_video' is not open here"):
        await host.call("decoder_video", {"op": "status"})
    video = TritonHost(server.grpc_url, ["decoder_video"])
    with pytest.raises(HostError, match="not served here"):
        await video.call("decoder_video", {"op": "status"})
    await video.close()
    await host.close()


async def test_a_server_that_is_away_is_unavailable() -> None:
    host = TritonHost(f"127.0.0.1:{_free_ports(1)[0]}", ["policy"])
    assert not await host.ready()
    with pytest.raises(HostError) as away:
        await host.call("policy", {"op": "status"}, timeout=5.0)
    assert (away.value.code, away.value.retriable) == ("UNAVAILABLE", True)
    await host.close()


def test_a_stopped_server_leaves_no_process(checkpoints: list[Path], tmp_path: Path) -> None:
    ports = TritonPorts(*_free_ports(3))
    settings = {"ANYLOOP_MODEL_DIR": str(checkpoints[0])}
    server = TritonServer(tmp_path, ["decoder_image"], ports, settings=settings)
    with server:
        assert server.ready()
    assert not [process for process in _command_lines() if str(tmp_path) in process]


def _command_lines() -> list[str]:
    lines = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and process.name != str(os.getpid()):
            try:
                lines.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return lines
