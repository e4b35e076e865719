"""The serving half of the loop in this process: decoders, a policy replica, and a gateway before them."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.gateway.server import serve
from tests.models.random_omni import build_random_omni
from tests.services.running_replica import Running, running, settings_for


@dataclass
class Stack:
    policy: Running
    http: httpx.AsyncClient
    edge: str
    metrics: str


@asynccontextmanager
async def serving(folder: Path, **changes: Any) -> AsyncIterator[Stack]:
    settings = settings_for(folder / "home", build_random_omni(folder / "model"), **changes)
    async with running(settings) as policy:
        port, edge, metrics = _free_ports(3)
        behind = policy.settings.model_copy(
            update={
                "gateway_port": port,
                "edge_grpc_port": edge,
                "metrics_port": metrics,
                "policy_target": f"127.0.0.1:{policy.replica.port}",
                "policy_control_target": f"127.0.0.1:{policy.replica.control_port}",
            }
        )
        stop = asyncio.Event()
        gateway = asyncio.create_task(serve(behind, stop))
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
            await _until_ready(http, gateway)
            yield Stack(policy, http, f"127.0.0.1:{edge}", f"http://127.0.0.1:{metrics}/metrics")
        stop.set()
        await gateway


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


async def _until_ready(http: httpx.AsyncClient, gateway: "asyncio.Task[None]") -> None:
    async with asyncio.timeout(20):
        while True:
            if gateway.done():
                gateway.result()
            try:
                if (await http.get("/ready")).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)
