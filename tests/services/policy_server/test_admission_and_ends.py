"""Who is let in at the replica, and what a client that goes away or runs out of time frees: from gRPC to the engine."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.sequence import SequenceLayout
from protos.anyloop.v1 import control_pb2, policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.hosts.interface import HostError
from tests.models.random_omni import build_random_omni
from tests.services.policy_server.fake_host import FakeHost
from tests.services.running_replica import Running, running, settings_for, user

Call = grpc.aio.UnaryStreamCall[policy_pb2.GenerateRequest, policy_pb2.GenerateResponse]
LONG = 450  # tokens, of which none is the end


@pytest.fixture(scope="module")
def slow_omni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that a long answer takes a second or two."""
    return build_random_omni(tmp_path_factory.mktemp("omni") / "slow", hidden=768)


@pytest.fixture
async def one_slot(tmp_path: Path, slow_omni: Path) -> AsyncIterator[Running]:
    settings = settings_for(tmp_path, slow_omni, engine_slots=1, engine_queue=5, engine_max_tokens=500)
    async with running(settings) as replica:
        yield replica


def ask(policy: Running, principal: str = "", timeout: float | None = None, max_tokens: int = LONG) -> Call:
    request = policy_pb2.GenerateRequest(
        messages=[user("Go on")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(
            max_tokens=max_tokens, logit_bias={SequenceLayout.load(policy.settings.model_dir).end: -100.0}
        ),
        principal=principal,
        unlogged=True,
    )
    return PolicyServiceStub(policy.channel).Generate(request, timeout=timeout)


def busy(running: int, waiting: int) -> object:
    def holds(status: control_pb2.ReplicaStatus) -> bool:
        return (status.requests_running, status.requests_waiting) == (running, waiting)

    return holds


async def test_one_who_asks_for_much_leaves_room_for_others_and_takes_turns(one_slot: Running) -> None:
    held = ask(one_slot, "greedy")
    assert (await held.read()).HasField("started")
    greedy = [ask(one_slot, "greedy", max_tokens=1) for _ in range(4)]
    await one_slot.until(busy(1, 4))
    with pytest.raises(grpc.aio.AioRpcError) as refused:  # four of five places: the last is for others
        await ask(one_slot, "greedy").read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "the other places are for others" in str(refused.value.details())
    assert int(dict(refused.value.trailing_metadata())["retry-after-ms"]) >= 1000
    order: list[str] = []

    async def finish(call: Call, name: str) -> None:
        async for _ in call:
            pass
        order.append(name)

    modest = ask(one_slot, "modest", max_tokens=1)
    await one_slot.until(busy(1, 5))
    held.cancel()
    await asyncio.gather(*(finish(call, "greedy") for call in greedy), finish(modest, "modest"))
    assert order.index("modest") <= 1


async def test_the_estimate_of_the_engine_reaches_the_client(tmp_path: Path, random_omni: Path) -> None:
    host = FakeHost()
    host.script = [HostError("RESOURCE_EXHAUSTED", "full", retry_after_s=7.25)]
    async with running(settings_for(tmp_path, random_omni), host=host) as policy:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await ask(policy).read()
    assert dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"] == "7250"


async def test_a_client_that_leaves_frees_its_slot_for_the_next(one_slot: Running) -> None:
    first, second = ask(one_slot, "a"), ask(one_slot, "b")
    assert (await first.read()).HasField("started")
    await one_slot.until(busy(1, 1))
    began = time.monotonic()
    first.cancel()
    assert (await second.read()).HasField("started")
    assert time.monotonic() - began < 0.5  # the rest of the first would take longer
    second.cancel()
    await one_slot.until(busy(0, 0))


async def test_a_client_that_leaves_the_queue_is_not_answered(one_slot: Running) -> None:
    first, second = ask(one_slot), ask(one_slot)
    await one_slot.until(busy(1, 1))
    second.cancel()
    await one_slot.until(busy(1, 0))
    first.cancel()
    await one_slot.until(busy(0, 0))


async def test_a_deadline_passes_in_the_queue(one_slot: Running) -> None:
    first = ask(one_slot)
    assert (await first.read()).HasField("started")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await ask(one_slot, timeout=0.1).read()
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await one_slot.until(lambda status: not status.requests_waiting)
    first.cancel()
    await one_slot.until(busy(0, 0))
