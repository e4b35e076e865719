"""The controller's health port: grpc.health.v1 in plain text, for the cluster's probes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from anyloop.config import Settings

_NAMES = ("", "liveness")


@asynccontextmanager
async def health_port(settings: Settings) -> AsyncIterator[int]:
    """SERVING while it is open, whether or not this controller holds the Lease; port 0 of the settings: none.
    Raises OSError on a taken port."""
    if settings.health_port == 0:
        yield 0
        return
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    address = f"{settings.bind}:{settings.health_port}"
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: is another process using it? ({error})") from error
    for name in _NAMES:
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    await server.start()
    try:
        yield port
    finally:
        await health.enter_graceful_shutdown()
        await server.stop(0.5)
