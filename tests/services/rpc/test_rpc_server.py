"""Every server answers health and reflection, and says when its port is taken."""

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from anyloop.log.errors import LogError, SpoolFull
from anyloop.media.limits import MediaError
from anyloop.media.store import MediaNotFound
from anyloop.registry import CheckpointError
from anyloop.sequence import LayoutError
from protos.anyloop.v1 import policy_pb2_grpc
from services.hosts.interface import HostError
from services.rpc.errors import as_rpc_error
from services.rpc.server import PortTaken, RpcServer

SERVICE = "anyloop.v1.PolicyService"
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def server_on(address: str = "127.0.0.1:0") -> RpcServer:
    server = RpcServer(address)
    service = policy_pb2_grpc.PolicyServiceServicer()
    server.add(SERVICE, policy_pb2_grpc.add_PolicyServiceServicer_to_server, service)
    return server


async def test_health_is_per_service_and_for_the_whole_and_ends_for_good_on_leave() -> None:
    server = server_on()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def health() -> list[int]:
            requests = [health_pb2.HealthCheckRequest(service=name) for name in ("", SERVICE)]
            return [(await stub.Check(request)).status for request in requests]

        assert await health() == [NOT_SERVING, NOT_SERVING]
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == NOT_SERVING
        await server.set_serving(True)
        assert (await watch.read()).status == SERVING
        assert await health() == [SERVING, SERVING]
        await server.leave()
        await server.set_serving(True)
        assert await health() == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch.cancel()
    await server.stop(0)


async def test_reflection_lists_the_services() -> None:
    server = server_on()
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {SERVICE, "grpc.health.v1.Health"} <= names
        call.cancel()
    await server.stop(0)


async def test_a_taken_port_is_named() -> None:
    first = server_on()
    await first.start()
    with pytest.raises(PortTaken, match=f"cannot listen on 127.0.0.1:{first.port}"):
        await server_on(f"127.0.0.1:{first.port}").start()
    await first.stop(0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (HostError("UNAVAILABLE", "away"), grpc.StatusCode.UNAVAILABLE),
        (HostError("NONSENSE", "away"), grpc.StatusCode.INTERNAL),
        (MediaError("not a picture"), grpc.StatusCode.INVALID_ARGUMENT),
        (MediaNotFound("no medium"), grpc.StatusCode.NOT_FOUND),
        (LayoutError("not a prompt"), grpc.StatusCode.INVALID_ARGUMENT),
        (CheckpointError("truncated"), grpc.StatusCode.FAILED_PRECONDITION),
        (SpoolFull("full"), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (LogError("away"), grpc.StatusCode.UNAVAILABLE),
        (TimeoutError(), grpc.StatusCode.DEADLINE_EXCEEDED),
        (KeyError("x"), grpc.StatusCode.INTERNAL),
    ],
)
def test_each_domain_error_has_its_status(error: Exception, code: grpc.StatusCode) -> None:
    refusal = as_rpc_error(error)
    assert refusal.code is code
    assert refusal.message
