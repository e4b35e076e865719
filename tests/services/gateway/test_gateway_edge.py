"""Edge gRPC: the same data plane, with gRPC's own statuses."""

import asyncio
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos.anyloop.v1 import feedback_pb2, feedback_pb2_grpc, policy_pb2, policy_pb2_grpc, scoring_pb2, types_pb2
from services.gateway.edge import HeldBytes
from services.gateway.errors import GatewayError
from services.gateway.keys import hash_key

Code = grpc.StatusCode


def saying(*parts: types_pb2.ContentPart, **fields: Any) -> policy_pb2.GenerateRequest:
    message = types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts)
    return policy_pb2.GenerateRequest(messages=[message], **fields)


def text(words: str) -> types_pb2.ContentPart:
    return types_pb2.ContentPart(text=words)


async def generate(world: Any, request: policy_pb2.GenerateRequest, **call: Any) -> list[policy_pb2.GenerateResponse]:
    async with world.channel() as channel:
        return [event async for event in policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, **call)]


async def refused(world: Any, request: policy_pb2.GenerateRequest, **call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await generate(world, request, **call)
    return error.value


async def test_generate_streams_and_stores_inline_media(world: Any, fake: ModuleType) -> None:
    picture = types_pb2.ContentPart(inline_media=types_pb2.InlineMedia(mime_type="image/png", data=fake.RED))
    events = await generate(
        world, saying(text("hello"), picture, principal="root", modalities=[types_pb2.MODALITY_IMAGE])
    )
    assert [event.WhichOneof("event") for event in events] == ["started", "media", "finished"]
    (seen,) = world.policy.requests
    assert seen.principal == "anonymous"  # what the client claims is not believed
    assert events[0].started.response_id == seen.response_id != ""
    assert world.store.get(seen.messages[0].parts[1].media.sha256) == fake.RED


async def test_scores_are_not_for_clients(world: Any) -> None:
    async with world.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await policy_pb2_grpc.PolicyServiceStub(channel).Score(scoring_pb2.ScoreRequest())
    assert error.value.code() is Code.UNIMPLEMENTED


async def test_feedback_reaches_the_log_once(world: Any) -> None:
    request = feedback_pb2.SubmitFeedbackRequest(
        feedback=feedback_pb2.Feedback(response_id="r", critique="louder", ratings={"overall": 0.5}),
        idempotency_key="k",
    )
    async with world.channel() as channel:
        stub = feedback_pb2_grpc.FeedbackServiceStub(channel)
        first, second = await stub.SubmitFeedback(request), await stub.SubmitFeedback(request)
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.SubmitFeedback(
                feedback_pb2.SubmitFeedbackRequest(feedback=feedback_pb2.Feedback(response_id="r"))
            )
    assert (first.early, first.duplicate, second.duplicate) == (True, False, True)
    assert [record.event.id for record in await world.feedback()] == [first.feedback_id]
    assert error.value.code() is Code.INVALID_ARGUMENT


async def test_statuses_pass_through_with_the_retry_delay(world: Any) -> None:
    busy = await refused(world, saying(text("busy")))
    assert busy.code() is Code.RESOURCE_EXHAUSTED
    assert dict(busy.trailing_metadata())["grpc-retry-pushback-ms"] == "3000"
    assert (await refused(world, saying(text("too long")))).code() is Code.INVALID_ARGUMENT
    crash = await refused(world, saying(text("secret crash")))
    assert crash.code() is Code.INTERNAL
    assert "secret" not in str(crash.details())


async def test_malformed_requests_are_invalid_argument(world: Any, fake: ModuleType) -> None:
    broken = types_pb2.ContentPart(inline_media=types_pb2.InlineMedia(mime_type="image/png", data=b"words"))
    missing = types_pb2.ContentPart(media=types_pb2.MediaRef(sha256="a" * 64))
    stranger = policy_pb2.GenerateRequest()
    stranger.ParseFromString(saying(text("x")).SerializeToString() + b"\xfa\x3f\x01x")  # field 1023, a string
    for request, code in (
        (policy_pb2.GenerateRequest(), Code.INVALID_ARGUMENT),
        (saying(), Code.INVALID_ARGUMENT),
        (saying(types_pb2.ContentPart()), Code.INVALID_ARGUMENT),
        (saying(broken), Code.INVALID_ARGUMENT),
        (saying(missing), Code.NOT_FOUND),
        (saying(text("x"), response_id="a b"), Code.INVALID_ARGUMENT),
        (stranger, Code.INVALID_ARGUMENT),
    ):
        assert (await refused(world, request)).code() is code
    assert world.policy.requests == []


async def test_a_response_id_is_given_once(world: Any) -> None:
    await generate(world, saying(text("x"), response_id="mine"))
    assert (await refused(world, saying(text("x"), response_id="mine"))).code() is Code.ALREADY_EXISTS


async def test_two_calls_at_the_same_moment_cannot_share_a_response_id(world: Any) -> None:
    calls = [generate(world, saying(text("slowly"), response_id="ours")) for _ in range(3)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    codes = [end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)]
    assert (codes, len(world.policy.requests)) == ([Code.ALREADY_EXISTS] * 2, 1)


def test_large_requests_share_a_budget_and_give_it_back() -> None:
    held, request = HeldBytes(budget=100), saying(text("x" * 50))
    with held.reading(request), pytest.raises(GatewayError) as error, held.reading(request):
        pass
    assert error.value.status is Code.UNAVAILABLE
    with held.reading(request):
        pass


async def test_deadline_and_cancellation_reach_the_policy(world: Any) -> None:
    assert (await refused(world, saying(text("silence")), timeout=0.3)).code() is Code.DEADLINE_EXCEEDED
    await asyncio.wait_for(world.policy.cancelled.wait(), 5)
    world.policy.cancelled.clear()
    async with world.channel() as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(saying(text("forever")))
        await call.read()
        call.cancel()
        await asyncio.wait_for(world.policy.cancelled.wait(), 5)


async def test_keys_and_roles_hold_at_the_edge(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(f'[keys.app]\nsha256 = "{hash_key("secret")}"\nroles = ["generate"]')
    world = await start(keys_file=path)
    known = {"metadata": (("authorization", "Bearer secret"),)}
    assert (await refused(world, saying(text("x")))).code() is Code.UNAUTHENTICATED
    assert len(await generate(world, saying(text("x")), **known)) == 5
    tokens = policy_pb2.GenerateRequest(prompt_token_ids=[1, 2])
    assert (await refused(world, tokens, **known)).code() is Code.PERMISSION_DENIED


async def test_health_and_reflection_answer(world: Any) -> None:
    async with world.channel() as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "anyloop.v1.PolicyService", "anyloop.v1.FeedbackService"):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        (answer,) = [reply async for reply in stub.ServerReflectionInfo(iter([listing]))]
    names = {service.name for service in answer.list_services_response.service}
    assert {"anyloop.v1.PolicyService", "anyloop.v1.FeedbackService"} <= names
