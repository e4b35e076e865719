"""A request that cannot be answered gets the right status and a sentence that says what to do; nothing is logged."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.log import RESPONSES
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from tests.services.running_replica import Running, running, settings_for, user

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni)) as replica:
        yield replica


def asking(**fields: object) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(messages=[user("Hi")], **fields)


def sampled(**values: float) -> policy_pb2.GenerateRequest:
    return asking(sampling=types_pb2.SamplingParams(**values))


def media(**fields: object) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(messages=[user("See", types_pb2.MediaRef(**fields))])


def of(message: types_pb2.Message) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(messages=[message])


INLINE = types_pb2.ContentPart(inline_media=types_pb2.InlineMedia(mime_type="image/png", data=b"x"))
REFUSED = [
    (policy_pb2.GenerateRequest(), INVALID, "messages is empty"),
    (of(types_pb2.Message(role=types_pb2.ROLE_USER)), INVALID, "messages[0] says nothing"),
    (of(types_pb2.Message(parts=user("Hi").parts)), INVALID, "messages[0] has no role"),
    (of(types_pb2.Message(role=2, parts=[types_pb2.ContentPart()])), INVALID, "messages[0].parts[0] is empty"),
    (of(types_pb2.Message(role=2, parts=[INLINE])), INVALID, "store them first"),
    (asking(modalities=[9]), INVALID, "modality 9 is unknown: this model answers in text, image, audio, video"),
    (asking(modalities=[0]), INVALID, "modality 0 is unknown"),
    (media(sha256="0" * 64, modality=types_pb2.MODALITY_TEXT), INVALID, "is text, which this model does not take"),
    (media(sha256="0" * 64), INVALID, "has no modality"),
    (media(sha256="../../etc", modality=types_pb2.MODALITY_IMAGE), INVALID, "64 lower-case hexadecimal digits"),
    (media(sha256="0" * 64, mime_type="image/png"), MISSING, "upload it first"),
    (sampled(temperature=-1), INVALID, "temperature is -1; it must be between 0 (greedy) and 2"),
    (sampled(temperature=float("nan")), INVALID, "temperature is nan"),
    (sampled(top_p=0), INVALID, "top_p is 0; it must be above 0 and at most 1"),
    (sampled(top_k=-3), INVALID, "top_k is -3"),
    (sampled(max_tokens=0), INVALID, "max_tokens is 0; it must be at least 1"),
    (asking(sampling=types_pb2.SamplingParams(stop=[""])), INVALID, "a stop string must have 1 to 256 characters"),
    (asking(policy_version="policy-000042"), MISSING, "'policy-000042' is not loaded on this replica"),
    (asking(prompt_token_ids=[1]), INVALID, "not both"),
    (policy_pb2.GenerateRequest(prompt_token_ids=[1, 2]), INVALID, "begins with bos"),
    (policy_pb2.GenerateRequest(prompt_token_ids=[99999]), INVALID, "prompt_token_ids holds 99999"),
    (asking(response_id="r" * 129), INVALID, "response_id must have at most 128 printable characters"),
    (asking(metadata={str(n): "x" for n in range(17)}), INVALID, "at most 16 entries"),
    (asking(metadata={"k" * 513: "x"}), INVALID, "at most 512 characters"),
    (policy_pb2.GenerateRequest(prompt_token_ids=[1] * 384), INVALID, "prompt_token_ids holds 384 ids"),
    (of(user("x", *[""] * 20_000)), INVALID, "20001 content parts"),
    (of(user(*[types_pb2.MediaRef(sha256="0" * 64, mime_type="image/png")] * 50)), INVALID, "tokens in 50 media"),
]


async def test_each_fault_of_a_request_is_named(policy: Running) -> None:
    stub = PolicyServiceStub(policy.channel)
    for request, code, words in REFUSED:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(request, timeout=10).read()
        assert (caught.value.code(), words in str(caught.value.details())) == (code, True), caught.value.details()
    assert list(policy.log.read(RESPONSES)) == []


async def test_too_long_a_prompt_is_told_both_numbers(policy: Running) -> None:
    stub = PolicyServiceStub(policy.channel)
    for text, numbers in (("abc " * 200, ("takes", "384")), ("abc " * 5_000, ("20000 characters", "384 tokens"))):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Generate(policy_pb2.GenerateRequest(messages=[user(text)])).read()
        assert caught.value.code() is INVALID
        assert all(number in str(caught.value.details()) for number in numbers), caught.value.details()


async def test_a_full_replica_says_when_to_come_back(tmp_path: Path, random_omni: Path) -> None:
    async with running(settings_for(tmp_path, random_omni, engine_slots=1, engine_queue=1)) as policy:
        stub = PolicyServiceStub(policy.channel)
        long = asking(modalities=[types_pb2.MODALITY_TEXT], sampling=types_pb2.SamplingParams(max_tokens=370))
        held = [stub.Generate(long), stub.Generate(long)]
        firsts = [await held[0].read()]
        assert firsts[0].HasField("started")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.gather(*(stub.Generate(long).read() for _ in range(3)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        trailers = dict(caught.value.trailing_metadata())
        assert trailers["retry-after-ms"] == trailers["grpc-retry-pushback-ms"] == "1000"
        for call in held:
            call.cancel()
