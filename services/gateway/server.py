"""One gateway process: REST and edge gRPC over one data plane, from start to drained stop."""

import asyncio
import contextlib
import logging
import math
import signal
import socket
from collections.abc import Iterator

import uvicorn

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.media.store import MediaStore
from anyloop.telemetry.metrics import GATEWAY_READY, expect_gateway, start_metrics_server
from services.gateway.app import create_app
from services.gateway.dataplane import DataPlane
from services.gateway.edge import EdgeServer
from services.gateway.key_watch import KeysWatcher
from services.gateway.keys import KeyRing
from services.outbox import open_outbox

logger = logging.getLogger(__name__)
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_READY_S = 5.0  # how often the gateway looks whether it is ready; nobody may be asking for /ready
_FLUSH_S = 1.0  # for the last feedback to reach the log; what remains waits on the disk for the next start


class RestServer(uvicorn.Server):
    """Signals belong to `serve`, which also has the gRPC server to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    # Accepted sockets inherit it; asyncio sets it only on those whose protocol number is given. Without it a small
    # chunk waits for the client's delayed acknowledgement of the one before: 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def _note_readiness(plane: DataPlane) -> None:
    """Until cancelled: the gateway is no longer ready then."""
    try:
        while True:
            GATEWAY_READY.set(not await plane.problems())
            await asyncio.sleep(_READY_S)
    finally:
        GATEWAY_READY.set(0)


async def serve(settings: Settings, stop: asyncio.Event | None = None) -> None:
    """Runs until SIGTERM, SIGINT or `stop`; then drains. Raises KeysFileError, LogError (another gateway has the outbox
    of this home), LedgerError, or OSError on a taken port."""
    stopping = stop or asyncio.Event()
    keys = KeyRing.load(settings.keys_file)
    with open_log(settings.effective_log_url) as log, contextlib.ExitStack() as cleanup:
        expect_gateway()
        cleanup.callback(start_metrics_server(settings.metrics_port, settings.bind))
        listener = cleanup.enter_context(_listen(settings.bind, settings.gateway_port))
        outbox = open_outbox(settings, "gateway", settings.feedback_fsync)
        cleanup.callback(outbox.close)
        plane = DataPlane(settings, log, outbox, MediaStore(settings.effective_media_url), keys)
        await asyncio.to_thread(plane.feedback.recall)
        outbox.start()
        edge = EdgeServer(plane, f"{settings.bind}:{settings.edge_grpc_port}")
        rest = RestServer(
            uvicorn.Config(
                create_app(plane),
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds),
                lifespan="off",
            )
        )
        if stop is None:
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, stopping.set)
        plane.start()
        if keys.local and settings.bind not in _LOOPBACK:
            logger.warning(
                "everybody who reaches %s may generate, give feedback and look: set ANYLOOP_KEYS_FILE", settings.bind
            )
        if settings.keys_file is not None:
            watcher = KeysWatcher(settings.keys_file, keys, log, settings.keys_reload_s)
            cleanup.callback(watcher.close)
            watcher.start()
        await edge.start()
        serving = asyncio.create_task(rest.serve(sockets=[listener]))
        logger.info("gateway serves", extra={"rest": settings.gateway_port, "grpc": edge.port})
        waiting = asyncio.create_task(stopping.wait())
        looking = asyncio.create_task(_note_readiness(plane))
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        plane.draining = True
        await edge.drain()
        rest.should_exit = True
        await asyncio.gather(edge.stop(settings.drain_seconds), serving)
        await plane.close()
        await asyncio.to_thread(outbox.flush, _FLUSH_S)
        logger.info("gateway stopped")
