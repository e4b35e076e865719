"""A whole gateway on free ports, with a real log and store, in front of a fake policy service."""

import asyncio
import importlib.util
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from openai import AsyncOpenAI

from anyloop.config import Settings
from anyloop.log import FEEDBACK, EventLog, Record, open_log
from anyloop.media.store import MediaStore
from protos.anyloop.v1 import control_pb2_grpc, policy_pb2_grpc
from services.gateway.server import serve


def _load_fake() -> ModuleType:
    name = "gateway_fake_policy"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("fake_policy.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def fake() -> ModuleType:
    """The module fake_policy: its constants are what the tests expect to come back."""
    return _load_fake()


@dataclass
class World:
    """`policy` is the fake, `health` its health service; `http` speaks to the gateway in front of `log` and
    `store`; `stop` is what SIGTERM does."""

    settings: Settings
    policy: Any
    health: health.aio.HealthServicer
    log: EventLog
    store: MediaStore
    http: httpx.AsyncClient
    stop: asyncio.Event
    gateway: "asyncio.Task[None]"
    base: str

    async def end(self) -> None:
        """Stops the gateway, as before a restart on the same home."""
        self.stop.set()
        await self.gateway

    def openai(self, key: str = "unused") -> AsyncOpenAI:
        transport = httpx.AsyncClient(trust_env=False)
        return AsyncOpenAI(base_url=f"{self.base}/v1", api_key=key, http_client=transport, max_retries=0)

    async def say(self, content: Any, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], **fields}
        return await self.http.post("/v1/chat/completions", json=body)

    async def feedback(self) -> list[Record]:
        """What the log has once the outbox has sent all."""
        for _ in range(500):
            if (await self.http.get("/v1/loop")).json()["outbox"]["bytes"] == 0:
                return list(self.log.read(FEEDBACK))
            await asyncio.sleep(0.02)
        raise TimeoutError("the outbox did not drain")

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.settings.edge_grpc_port}")


Start = Callable[..., Awaitable[World]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def _running(home: Path, **overrides: Any) -> AsyncIterator[World]:
    settings = Settings(home=home, gateway_port=_free_port(), edge_grpc_port=_free_port(), _env_file=None, **overrides)
    store = MediaStore(settings.effective_media_url)
    policy = _load_fake().FakePolicy(store)
    upstream = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(policy, upstream)
    control_pb2_grpc.add_ControlServiceServicer_to_server(_load_fake().FakeControl(), upstream)
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, upstream)
    for service in ("", "anyloop.v1.PolicyService"):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    target = f"127.0.0.1:{upstream.add_insecure_port('127.0.0.1:0')}"
    settings.policy_target = settings.policy_control_target = settings.critique_control_target = target
    await upstream.start()
    log = open_log(settings.effective_log_url)
    log.ensure_topics()
    stop = asyncio.Event()
    gateway = asyncio.create_task(serve(settings, stop))
    base = f"http://127.0.0.1:{settings.gateway_port}"
    try:
        async with httpx.AsyncClient(base_url=base, trust_env=False, timeout=20) as http:
            await _until_ready(http, gateway)
            yield World(settings, policy, checks, log, store, http, stop, gateway, base)
    finally:
        stop.set()
        await gateway
        await upstream.stop(0)
        log.close()


async def _until_ready(http: httpx.AsyncClient, gateway: "asyncio.Task[None]") -> None:
    for _ in range(200):
        if gateway.done():
            gateway.result()
        try:
            if (await http.get("/ready")).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.02)
    raise TimeoutError("the gateway did not become ready")


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts a gateway with other settings; all are stopped at the end of the test."""
    async with AsyncExitStack() as stack:

        async def one(**overrides: Any) -> World:
            return await stack.enter_async_context(_running(tmp_path / "home", **overrides))

        yield one


@pytest.fixture
async def world(start: Start) -> World:
    return await start()
