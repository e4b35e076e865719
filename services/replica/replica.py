"""One replica from start to end: its ports, its weights, and a clean way out. The policy and the critique service
differ in the servicer that they build on it."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from anyloop.config import Settings
from anyloop.log import EventLog, LogError, open_log
from anyloop.log.spool import SpooledWriter
from anyloop.registry import Registry, announce, serving_version
from anyloop.registry.announce import PROMOTED
from anyloop.sequence import Sequencer
from anyloop.telemetry import metrics
from anyloop.telemetry.metrics import start_metrics_server
from anyloop.transport import TransportError, open_channel, server_credentials
from protos.anyloop.v1 import decoder_pb2
from protos.anyloop.v1.control_pb2_grpc import add_ControlServiceServicer_to_server
from protos.anyloop.v1.decoder_pb2_grpc import DecoderServiceStub
from services.hosts.interface import ModelHost
from services.outbox import open_outbox
from services.replica import control
from services.replica.inflight import InFlight
from services.replica.last_serving import LastServing
from services.replica.promotions import Promotions
from services.replica.prompts import MediaCodes, PromptBuilder
from services.replica.recorder import Recorder
from services.replica.sampling import SamplingDefaults
from services.replica.weights import Weights
from services.rpc.peers import PeerInterceptor
from services.rpc.readiness import wait_for_host
from services.rpc.server import RpcServer

logger = logging.getLogger(__name__)

_DECODERS = decoder_pb2.DESCRIPTOR.services_by_name["DecoderService"].full_name
_END_SECONDS = 2.0
FLUSH_SECONDS = 3.0  # for the last events to reach the log; what remains waits on the disk for the next start


@dataclass(frozen=True)
class Parts:
    """What a servicer is built from."""

    host: ModelHost
    prompts: PromptBuilder
    media: MediaCodes
    recorder: Recorder
    inflight: InFlight
    defaults: SamplingDefaults


@dataclass(frozen=True)
class Kind:
    """A service on this replica: `lineage` names its model and its checkpoints."""

    lineage: str
    service: str
    port: int
    control_port: int
    register: Callable[[Any, grpc.aio.Server], None]
    build: Callable[[Parts], Any]


class Replica:
    """`start()`, then wait for a signal or the end of one of `tasks`, then `stop()`. The host belongs to the caller.

    Ports given as 0 are chosen: see `port` and `control_port`. Raises TransportError.
    """

    def __init__(self, settings: Settings, kind: Kind, host: ModelHost) -> None:
        self._settings = settings
        self._kind = kind
        self._host = host
        self._inflight = InFlight(settings.engine_slots + settings.engine_queue)
        probed = f"{settings.bind}:{settings.health_port}" if settings.health_port else ""
        self._rpc = RpcServer(
            f"{settings.bind}:{kind.port}", credentials=server_credentials(settings), health_address=probed
        )
        self._control = RpcServer(
            f"{settings.bind}:{kind.control_port}",
            credentials=server_credentials(settings),
            interceptors=_control_peers(settings),
        )
        self._registry = Registry(settings.effective_registry_dir)
        self._weights = Weights(host, kind.lineage, self._registry)
        self._last = LastServing(settings.home / "serving" / kind.lineage)
        self.promotions = Promotions(host, self._weights, self._set_serving)
        self._stack = AsyncExitStack()
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def port(self) -> int:
        return self._rpc.port

    @property
    def control_port(self) -> int:
        return self._control.port

    async def start(self) -> None:
        """Listens, NOT_SERVING; the weights come in a task of their own, which turns it SERVING. Raises PortTaken."""
        settings, kind = self._settings, self._kind
        async with AsyncExitStack() as stack:
            log = await asyncio.to_thread(open_log, settings.effective_log_url)
            stack.push_async_callback(asyncio.to_thread, log.close)
            spool = await asyncio.to_thread(open_outbox, settings, kind.lineage, settings.spool_fsync)
            await asyncio.to_thread(spool.start)
            stack.push_async_callback(asyncio.to_thread, spool.close)
            stack.push_async_callback(asyncio.to_thread, spool.flush, FLUSH_SECONDS)
            stack.callback(start_metrics_server(settings.metrics_port, settings.bind))
            channel = open_channel(settings, settings.decoder_target, service=_DECODERS)
            stack.push_async_callback(channel.close)
            recorder = Recorder(spool, f"services/{kind.lineage}", settings.unlogged_responses)
            stack.push_async_callback(asyncio.to_thread, recorder.close)
            self._rpc.add(kind.service, kind.register, kind.build(self._parts(channel, recorder)))
            operator = control.ControlServer(self._weights, self.promotions, self._inflight, self._leave)
            self._control.add(control.SERVICE, add_ControlServiceServicer_to_server, operator)
            await self._rpc.start()
            stack.push_async_callback(self._rpc.stop, 0.0)
            await self._control.start()
            stack.push_async_callback(self._control.stop, 0.0)
            await self._control.set_serving(True)
            self.tasks = [asyncio.create_task(self._follow(log)), asyncio.create_task(_watch(spool))]
            self._stack = stack.pop_all()
        logger.info("listening", extra={"port": self.port, "control_port": self.control_port})

    async def stop(self, grace: float | None = None) -> None:
        """Refuses new requests, lets running ones end within `grace` seconds (default: the setting), then releases
        everything."""
        grace = self._settings.drain_seconds if grace is None else grace
        await self._leave()
        cut = await self._inflight.drain(grace)
        if cut:
            logger.warning("%d requests were cut off after %g seconds", cut, grace)
        for task in self.tasks:
            task.cancel()
        if self.tasks:  # one that waits for a log that is away ends when the log is closed, below
            ended, _ = await asyncio.wait(self.tasks, timeout=_END_SECONDS)
            await asyncio.gather(*ended, return_exceptions=True)
        await self._rpc.stop(1.0)
        await self._stack.aclose()

    async def _follow(self, log: EventLog) -> None:
        await wait_for_host(self._host)
        while True:
            try:
                await asyncio.to_thread(self._found, log)
                break
            except LogError as error:
                if not error.retriable:
                    raise
                if last := self._last.read():
                    logger.warning("beginning with %s, which was served here last: %s", last, error)
                    self.promotions.begin_with(last)
                    break
                logger.warning("waiting for the event log: %s", error)
                await asyncio.sleep(1.0)
        await self.promotions.run(log)

    def _found(self, log: EventLog) -> None:
        """The base checkpoint is the root of the lineage, and serves until the log says otherwise."""
        base = self._registry.import_base(self._kind.lineage, self._settings.model_dir)
        if serving_version(log, self._kind.lineage) is None:
            announce(
                log,
                self._kind.lineage,
                base.version,
                PROMOTED,
                digest=base.weights_digest,
                reason="the base checkpoint, before any other",
                decided_by="base",
            )

    async def _set_serving(self, serving: bool) -> None:
        if serving:
            self._last.note(self.promotions.good)
            self._inflight.open()
        metrics.SERVING.labels(self._kind.lineage).set(serving and not self._rpc.left)
        await self._rpc.set_serving(serving)

    async def _leave(self) -> None:
        metrics.SERVING.labels(self._kind.lineage).set(0)
        await self._rpc.leave()

    def _parts(self, channel: grpc.aio.Channel, recorder: Recorder) -> Parts:
        model_dir = Path(self._settings.model_dir)
        media = MediaCodes(DecoderServiceStub(channel))
        sequencer = Sequencer.from_pretrained(model_dir)
        return Parts(
            host=self._host,
            prompts=PromptBuilder(sequencer, media, self._settings.engine_max_tokens),
            media=media,
            recorder=recorder,
            inflight=self._inflight,
            defaults=SamplingDefaults.from_pretrained(model_dir),
        )


def _control_peers(settings: Settings) -> list[grpc.aio.ServerInterceptor]:
    """The status is for whoever got through the handshake: the gateway shows it and may change nothing."""
    allowed = [name for part in settings.control_peers.split(",") if (name := part.strip())]
    if not allowed:
        return []
    if settings.tls_cert is None:
        raise TransportError("ANYLOOP_CONTROL_PEERS names callers by their certificates: it needs ANYLOOP_TLS_CERT too")
    return [PeerInterceptor(control.SERVICE, allowed, open_to_all=("GetStatus",))]


class OutboxStopped(Exception):
    """Answers can no longer be recorded."""


async def _watch(spool: SpooledWriter) -> None:
    """Raises OutboxStopped when the thread that drains the outbox has died."""
    while spool.failure is None:  # noqa: ASYNC110 - a thread sets it
        await asyncio.sleep(1.0)
    raise OutboxStopped(f"the outbox no longer drains: {spool.failure}") from spool.failure
