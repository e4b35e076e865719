"""Real servers on loopback ports of this process: decoders, a policy or a critique replica, SQLite log, real codecs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anyloop.config import Settings
from anyloop.log import EventLog, Record, open_log
from anyloop.media.store import MediaStore
from anyloop.modality import MEDIA_MODALITIES
from anyloop.registry import Registry
from protos.anyloop.v1 import control_pb2, control_pb2_grpc, types_pb2
from protos.anyloop.v1.decoder_pb2_grpc import DecoderServiceStub, add_DecoderServiceServicer_to_server
from services.critique.__main__ import critique_kind
from services.decoders.server import SERVICE, DecoderServer
from services.hosts import open_host
from services.hosts.interface import ModelHost
from services.policy.__main__ import policy_kind
from services.replica.replica import Replica
from services.rpc.server import RpcServer

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
Value = TypeVar("Value")


def settings_for(home: Path, model_dir: Path, **changes: Any) -> Settings:
    ports = {"policy_port": 0, "critique_port": 0, "policy_control_port": 0, "critique_control_port": 0}
    return Settings(_env_file=None, home=home, model_dir=model_dir, host="inprocess", **ports, **changes)


async def eventually(read: Callable[[], Awaitable[Value]], holds: Callable[[Value], object]) -> Value:
    """What `read` gives once it holds; TimeoutError after 20 seconds."""
    async with asyncio.timeout(20):
        while not holds(value := await read()):  # noqa: ASYNC110 - the other side is a server
            await asyncio.sleep(0.01)
    return value


@dataclass
class Running:
    settings: Settings
    replica: Replica
    channel: grpc.aio.Channel
    control: control_pb2_grpc.ControlServiceStub
    log: EventLog
    registry: Registry
    store: MediaStore

    async def health(self, service: str = "") -> int:
        stub = health_pb2_grpc.HealthStub(self.channel)
        return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

    async def until_health(self, status: int) -> None:
        await eventually(self.health, lambda found: found == status)

    async def status(self) -> control_pb2.ReplicaStatus:
        return await self.control.GetStatus(control_pb2.GetStatusRequest())

    async def events(self, topic: str, count: int) -> list[Any]:
        """The first `count` messages of a topic, once they are there."""

        async def read() -> list[Record]:
            return list(self.log.read(topic))

        return [record.event.unwrap() for record in await eventually(read, lambda found: len(found) >= count)]

    async def until(self, holds: Callable[[control_pb2.ReplicaStatus], object]) -> control_pb2.ReplicaStatus:
        return await eventually(self.status, holds)

    async def until_serving(self, version: str) -> control_pb2.ReplicaStatus:
        return await self.until(lambda status: status.serving_version == version)


@asynccontextmanager
async def decoders(settings: Settings, store: MediaStore) -> AsyncIterator[tuple[DecoderServiceStub, str]]:
    """A decoder server over the real codecs: its stub and its address."""
    async with AsyncExitStack() as stack:
        host = open_host(settings, [f"decoder_{modality}" for modality in MEDIA_MODALITIES])
        stack.push_async_callback(host.close)
        server = RpcServer("127.0.0.1:0", settings.max_body_bytes)
        server.add(
            SERVICE, add_DecoderServiceServicer_to_server, await DecoderServer.open(host, store, MEDIA_MODALITIES)
        )
        await server.start()
        stack.push_async_callback(server.stop, 0.0)
        await server.set_serving(True)
        address = f"127.0.0.1:{server.port}"
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        yield DecoderServiceStub(channel), address


@asynccontextmanager
async def running(
    settings: Settings, lineage: str = "policy", host: ModelHost | None = None, wait: bool = True
) -> AsyncIterator[Running]:
    """A replica of `lineage` with decoders behind it; `host` replaces the in-process engine."""
    async with AsyncExitStack() as stack:
        log = stack.enter_context(open_log(settings.effective_log_url))
        log.ensure_topics()
        store = MediaStore(settings.effective_media_url)
        _, decoder_target = await stack.enter_async_context(decoders(settings, store))
        settings = settings.model_copy(update={"decoder_target": decoder_target})
        if host is None:
            host = open_host(settings, [lineage])
            stack.push_async_callback(host.close)
        replica = Replica(settings, {"policy": policy_kind, "critique": critique_kind}[lineage](settings), host)
        await replica.start()
        stack.push_async_callback(replica.stop, 1.0)
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{replica.port}"))
        operator = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{replica.control_port}"))
        control = control_pb2_grpc.ControlServiceStub(operator)
        registry = Registry(settings.effective_registry_dir)
        up = Running(settings, replica, channel, control, log, registry, store)
        if wait:
            await up.until_health(SERVING)
        yield up


def user(*parts: str | types_pb2.MediaRef) -> types_pb2.Message:
    return message(types_pb2.ROLE_USER, parts)


def message(role: int, parts: Iterable[str | types_pb2.MediaRef]) -> types_pb2.Message:
    contents = [
        types_pb2.ContentPart(text=part) if isinstance(part, str) else types_pb2.ContentPart(media=part)
        for part in parts
    ]
    return types_pb2.Message(role=role, parts=contents)


def publish_variant(registry: Registry, lineage: str, model_dir: Path, parent: str) -> str:
    """A new version of `lineage` from the weights of another model directory."""
    import shutil

    from anyloop.registry.registry import safetensors_digest

    def write(folder: Path) -> None:
        for path in model_dir.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)

    return registry.publish(lineage, write, parent=parent, weights_digest=safetensors_digest(model_dir)).version
