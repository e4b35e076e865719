"""How calls ended, as metrics tell it: over a real server, with a servicer that does what it is told."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from prometheus_client import REGISTRY

from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc, scoring_pb2
from services.hosts.interface import HostError
from services.rpc.errors import invalid
from services.rpc.server import RpcServer

CODES = ("OK", "INTERNAL", "INVALID_ARGUMENT", "CANCELLED", "DEADLINE_EXCEEDED")


class Told(policy_pb2_grpc.PolicyServiceServicer):
    """Does what the response id says."""

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        yield policy_pb2.GenerateResponse()
        if request.response_id == "break":
            raise HostError("INTERNAL", "the engine found no finite logits")
        if request.response_id == "refuse":
            raise invalid("no")
        if request.response_id == "wait":
            await asyncio.sleep(60)

    async def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        raise HostError("INTERNAL", "the same")


def read(metric: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(metric, labels) or 0.0


def failures() -> dict[str, float]:
    return {code: read("anyloop_request_failures_total", model_name="policy", code=code) for code in CODES}


def calls() -> dict[str, float]:
    service = {"service": "PolicyService", "method": "Generate"}
    return {code: read("anyloop_rpc_requests_total", code=code, **service) for code in CODES}


@pytest.fixture
async def stub() -> AsyncIterator[policy_pb2_grpc.PolicyServiceStub]:
    server = RpcServer("127.0.0.1:0")
    server.add("anyloop.v1.PolicyService", policy_pb2_grpc.add_PolicyServiceServicer_to_server, Told())
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield policy_pb2_grpc.PolicyServiceStub(channel)
    await server.stop(0.0)


async def answer(stub: policy_pb2_grpc.PolicyServiceStub, what: str, seconds: float | None = None) -> str:
    try:
        async for _ in stub.Generate(policy_pb2.GenerateRequest(response_id=what), timeout=seconds):
            pass
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def leave(stub: policy_pb2_grpc.PolicyServiceStub) -> None:
    call = stub.Generate(policy_pb2.GenerateRequest(response_id="wait"))
    await call.read()
    call.cancel()


async def test_every_call_is_counted_once_under_the_status_it_came_to(
    stub: policy_pb2_grpc.PolicyServiceStub,
) -> None:
    before, failed = calls(), failures()
    assert await answer(stub, "go") == "OK"
    assert await answer(stub, "break") == "INTERNAL"
    assert await answer(stub, "refuse") == "INVALID_ARGUMENT"
    assert await answer(stub, "wait", seconds=0.2) == "DEADLINE_EXCEEDED"
    await leave(stub)
    expected = {code: before[code] + 1 for code in CODES}
    async with asyncio.timeout(10):
        while calls() != expected:  # noqa: ASYNC110 - the server hears of a departure a moment later
            await asyncio.sleep(0.01)
    assert failures() == {code: failed[code] + (code != "OK") for code in CODES}


async def test_scores_are_calls_and_no_failed_answers(stub: policy_pb2_grpc.PolicyServiceStub) -> None:
    before = failures()
    labels = {"service": "PolicyService", "method": "Score", "code": "INTERNAL"}
    scored = read("anyloop_rpc_requests_total", **labels)
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Score(scoring_pb2.ScoreRequest())
    assert read("anyloop_rpc_requests_total", **labels) == scored + 1
    assert failures() == before
