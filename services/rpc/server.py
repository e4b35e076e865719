"""One gRPC server: its services, health per service and for "", reflection, TLS, and a clean end on SIGTERM."""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from services.rpc.errors import ErrorInterceptor
from services.rpc.observer import CallObserver

logger = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 2**20  # of a request; media travel by reference
LIVENESS = "liveness"  # on the health port: SERVING as long as the process answers, also while it drains or loads
# Clients learn of new replicas when a connection ends, and then only: so none lasts. Running calls are left to end.
CONNECTION_SECONDS = 300.0
_HEARD_SECONDS = 0.3  # from NOT_SERVING on the wire to the last call that a client sends all the same
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # two replicas on one port would share requests without a word
    ("grpc.keepalive_time_ms", 30_000),
    # Clients ping every 20 seconds; more often than every five minutes is taken for an attack where this is not said.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class PortTaken(Exception):
    """Another process listens on the address."""


class RpcServer:
    """Add servicers, `start()`, and say `set_serving(True)` once requests can be answered: it begins NOT_SERVING."""

    def __init__(
        self,
        address: str,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        *,
        credentials: grpc.ServerCredentials | None = None,
        health_address: str = "",
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        connection_seconds: float = CONNECTION_SECONDS,
    ) -> None:
        """`health_address`: a second port, in plain text, that answers health checks alone: for probes without TLS.
        `interceptors` run inside the one that turns domain errors into statuses."""
        options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_connection_age_ms", round(1000 * connection_seconds)),
        )
        around = [ErrorInterceptor(), CallObserver(), *interceptors]
        self._server = grpc.aio.server(interceptors=around, options=options)
        self._probed = grpc.aio.server(options=_OPTIONS) if health_address else None
        self._health = _WatchedHealth()
        self._names: list[str] = [""]
        self._address, self._health_address = address, health_address
        self._credentials = credentials
        self._left = False
        self.port = 0
        self.health_port = 0

    def add(self, name: str, register: Callable[[Any, grpc.aio.Server], None], servicer: Any) -> None:
        """`name` is the full service name, `register` the generated `add_..._to_server`."""
        register(servicer, self._server)
        self._names.append(name)

    async def start(self) -> None:
        """Listens; `port` is the one taken (an address may end in `:0`). Raises PortTaken."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        named = [*self._names[1:], health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        reflection.enable_server_reflection([*named, reflection.SERVICE_NAME], self._server)
        await self.set_serving(False)
        self.port = _listen(self._server, self._address, self._credentials)
        if self._probed is not None:
            health_pb2_grpc.add_HealthServicer_to_server(_ProbedHealth(self._health), self._probed)
            self.health_port = _listen(self._probed, self._health_address, None)
            await self._probed.start()
        await self._server.start()

    @property
    def left(self) -> bool:
        """True from `leave` on."""
        return self._left

    async def set_serving(self, serving: bool) -> None:
        for name in self._names:
            await self._health.set(name, _SERVING if serving else _NOT_SERVING)

    async def leave(self) -> None:
        """NOT_SERVING from now on, whatever `set_serving` is told later; calls are still answered. Returns when the
        clients that watch have heard of it: a call that meets the closing of the port is lost, not repeated."""
        if self._left:
            return
        self._left = True
        await self._health.enter_graceful_shutdown()
        if self._health.watchers:
            await asyncio.sleep(_HEARD_SECONDS)

    async def stop(self, grace: float) -> None:
        """Refuses new calls at once, gives running ones `grace` seconds, then cancels them."""
        await self.leave()
        await self._server.stop(grace)
        if self._probed is not None:
            await self._probed.stop(0)


class _WatchedHealth(HealthServicer):
    """Knows how many balanced clients follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.watchers = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        self.watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self.watchers -= 1


class _ProbedHealth(health_pb2_grpc.HealthServicer):
    """The health of the server, and LIVENESS: a replica that waits for its weights must not be started again for it."""

    def __init__(self, health: HealthServicer) -> None:
        self._health = health

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        if request.service == LIVENESS:
            return health_pb2.HealthCheckResponse(status=_SERVING)
        return await self._health.Check(request, context)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext) -> None:
        await self._health.Watch(request, context)


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    """The port taken. Raises PortTaken."""
    try:
        if credentials is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, credentials))
    except RuntimeError as error:
        raise PortTaken(f"cannot listen on {address}: is another process using it? ({error})") from error


async def until_told_to_stop(tasks: Sequence[asyncio.Task[None]] = ()) -> None:
    """Returns on SIGTERM or SIGINT, or when one of `tasks` ends: raises its error then."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told.set)
    waiting = asyncio.ensure_future(told.wait())
    try:
        done, _ = await asyncio.wait([waiting, *tasks], return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for task in done:
        if task is not waiting:
            task.result()
    logger.info("told to stop; finishing what runs")
