"""The model host fails, hangs, goes away and returns: clients get a status, the log what was said, health the truth."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.log import RESPONSES
from anyloop.telemetry import metrics
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.hosts.interface import HostError
from tests.services.policy_server.fake_host import FakeHost
from tests.services.running_replica import NOT_SERVING, SERVING, Running, running, settings_for, user

BASE = "policy-000000"


def tokens(*ids: int) -> dict[str, object]:
    return {"tokens": list(ids), "logprobs": [-1.0] * len(ids), "version": BASE}


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path, host: FakeHost) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni), host=host) as replica:
        yield replica


async def ask(policy: Running, **fields: object) -> list[policy_pb2.GenerateResponse]:
    request = policy_pb2.GenerateRequest(messages=[user("Hi")], **fields)
    return [event async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=20)]


async def refused(policy: Running, **fields: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(policy, **fields)
    return caught.value.code(), str(caught.value.details())


async def test_the_first_tokens_reach_the_client_while_the_rest_is_still_made(policy: Running, host: FakeHost) -> None:
    host.script = [tokens(72), 3.0, tokens(73), {"finished": "stop"}]
    call = PolicyServiceStub(policy.channel).Generate(policy_pb2.GenerateRequest(messages=[user("Hi")]))
    async with asyncio.timeout(1):
        assert (await call.read()).HasField("started")
        assert (await call.read()).HasField("text")
    call.cancel()
    async with asyncio.timeout(1):
        await host.stream_closed.wait()


async def test_a_failure_half_way_is_a_status_and_what_was_shown_is_logged(policy: Running, host: FakeHost) -> None:
    host.script = [tokens(72, 73), HostError("UNAVAILABLE", "the model server went away")]
    assert await refused(policy, response_id="half") == (grpc.StatusCode.UNAVAILABLE, "the model server went away")
    (logged,) = await policy.events(RESPONSES, 1)
    assert (logged.response_id, list(logged.output_token_ids)) == ("half", [72, 73])
    assert logged.finish_reason == types_pb2.FINISH_REASON_CANCELLED


async def test_a_failure_before_the_first_token_is_no_response(policy: Running, host: FakeHost) -> None:
    host.script = [HostError("RESOURCE_EXHAUSTED", "256 requests are waiting already; retry in a second")]
    assert (await refused(policy))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    host.script = [{"tokens": [], "logprobs": [], "version": BASE}]
    assert (await refused(policy))[0] is grpc.StatusCode.INTERNAL
    host.script = [ZeroDivisionError("secret detail")]
    code, details = await refused(policy)
    assert (code, "secret" in details) == (grpc.StatusCode.INTERNAL, False)
    await asyncio.sleep(0.3)
    assert list(policy.log.read(RESPONSES)) == []


async def test_the_spans_of_the_host_stand_in_the_answer(policy: Running, host: FakeHost) -> None:
    spans = [[BASE, 0, 1], ["policy-000001", 1, 2]]
    host.script = [tokens(72, 73), {"finished": "length", "version_spans": spans}]
    finished = (await ask(policy))[-1].finished
    assert [[s.version, s.begin, s.end] for s in finished.version_spans] == spans
    assert finished.finish_reason == types_pb2.FINISH_REASON_LENGTH


async def test_health_follows_the_host_and_its_weights_are_restored(policy: Running, host: FakeHost) -> None:
    assert metrics.SERVING.labels("policy")._value.get() == 1
    host.alive = False
    await policy.until_health(NOT_SERVING)
    assert metrics.SERVING.labels("policy")._value.get() == 0
    host.restart()
    await policy.until_health(SERVING)
    assert host.serving == BASE
    assert metrics.SERVING.labels("policy")._value.get() == 1


async def test_a_replica_that_drains_says_that_it_does_not_serve(policy: Running) -> None:
    await policy.replica.stop(0.0)
    assert metrics.SERVING.labels("policy")._value.get() == 0
    await policy.replica._set_serving(True)  # a late look at the host
    assert metrics.SERVING.labels("policy")._value.get() == 0


async def test_a_passing_fault_of_a_switch_is_tried_again(tmp_path: Path, random_omni: Path, host: FakeHost) -> None:
    host.activation_errors = [HostError("UNAVAILABLE", "busy"), HostError("DEADLINE_EXCEEDED", "slow")]
    async with running(settings_for(tmp_path, random_omni), host=host) as policy:
        assert (await policy.status()).swap_failure == ""
        assert host.serving == BASE


async def test_metrics_count_answers_and_tokens(policy: Running, host: FakeHost) -> None:
    def count(metric: object, *labels: str) -> float:
        return metric.labels("policy", *labels)._value.get()  # type: ignore[attr-defined]

    before = count(metrics.GENERATION_TOKENS), count(metrics.REQUEST_SUCCESS, "stop")
    host.script = [tokens(72, 73), tokens(74), {"finished": "stop"}]
    await ask(policy)
    assert count(metrics.GENERATION_TOKENS) == before[0] + 3
    assert count(metrics.REQUEST_SUCCESS, "stop") == before[1] + 1
    assert count(metrics.NUM_REQUESTS_RUNNING) == count(metrics.NUM_REQUESTS_WAITING) == 0
    assert count(metrics.POLICY_VERSION_INFO, BASE) == 1
