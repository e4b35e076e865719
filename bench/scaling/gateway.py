"""CPU of one gateway process per answer and per piece of feedback, in front of a policy service that costs nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from anyloop.cli.kafka.broker import free_port
from anyloop.log import open_log

_CLIENTS = 16
_READY_S = 60.0


def gateway_costs(url: str, home: Path, count: int) -> dict[str, float]:
    """CPU seconds of the gateway process per request of each kind, over `count` requests of 16 clients."""
    with open_log(url) as log:
        log.ensure_topics()
    ports = {name: free_port() for name in ("gateway_port", "edge_grpc_port")}
    policy = free_port()
    settings = {
        "ANYLOOP_HOME": str(home),
        "ANYLOOP_LOG_URL": url,
        **{f"ANYLOOP_{name.upper()}": str(port) for name, port in ports.items()},
        **{
            f"ANYLOOP_{name}_TARGET": f"127.0.0.1:{policy}"
            for name in ("POLICY", "CRITIQUE", "DECODER", "POLICY_CONTROL", "CRITIQUE_CONTROL")
        },
    }
    environment = {**os.environ, **settings, "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        for arguments in (["bench.scaling.stub_policy", str(policy)], ["services.gateway"]):
            child = subprocess.Popen([sys.executable, "-m", *arguments], env=environment, stderr=subprocess.DEVNULL)
            stack.callback(child.wait)
            stack.callback(child.terminate)
        return asyncio.run(_measure(f"http://127.0.0.1:{ports['gateway_port']}", psutil.Process(child.pid), count))


async def _measure(base: str, gateway: psutil.Process, count: int) -> dict[str, float]:
    limits = httpx.Limits(max_connections=_CLIENTS)
    async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=30, limits=limits) as http:
        deadline = time.monotonic() + _READY_S
        while not await _ready(http):
            if time.monotonic() > deadline:
                raise TimeoutError("the gateway did not become ready")
            await asyncio.sleep(0.1)
        chat = {"model": "anyloop", "messages": [{"role": "user", "content": "Describe a blue square."}]}
        answers: list[str] = []

        async def answer(number: int) -> None:
            reply = await http.post("/v1/chat/completions", json=chat)
            answers.append(reply.raise_for_status().json()["id"])

        async def stream(number: int) -> None:
            reply = await http.post("/v1/chat/completions", json=chat | {"stream": True})
            assert reply.raise_for_status().text.endswith("data: [DONE]\n\n")

        async def feedback(number: int) -> None:
            said = {"response_id": answers[number % len(answers)], "critique": "It should be red.", "label": False}
            (await http.post("/v1/feedback", json=said)).raise_for_status()

        await _load(answer, 200)
        kinds = {"answer": answer, "streamed_answer": stream, "feedback": feedback}
        return {name: await _cost(gateway, kind, count) for name, kind in kinds.items()}


async def _ready(http: httpx.AsyncClient) -> bool:
    try:
        return (await http.get("/ready")).is_success
    except httpx.TransportError:
        return False


async def _cost(gateway: psutil.Process, kind, count: int) -> float:  # type: ignore[no-untyped-def]
    before = gateway.cpu_times()
    await _load(kind, count)
    after = gateway.cpu_times()
    return (after.user + after.system - before.user - before.system) / count


async def _load(kind, count: int) -> None:  # type: ignore[no-untyped-def]
    numbers = iter(range(count))

    async def client() -> None:
        for number in numbers:
            await kind(number)

    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
