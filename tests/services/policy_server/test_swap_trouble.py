"""Swaps that meet, that mix, that come too early, and an engine that dies: seen from a replica's ports and the log."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.log import RESPONSES
from anyloop.registry import Registry, announce
from anyloop.registry.announce import PROMOTED
from protos.anyloop.v1 import control_pb2, policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.hosts.interface import HostError
from services.policy.engine import Engine
from tests.services.policy_server.fake_host import FakeHost
from tests.services.running_replica import (
    NOT_SERVING,
    SERVING,
    Running,
    eventually,
    publish_variant,
    running,
    settings_for,
    user,
)

BASE = "policy-000000"


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni, engine_resident_versions=3)) as replica:
        yield replica


def long_call(policy: Running, seed: int) -> AsyncIterable[policy_pb2.GenerateResponse]:
    request = policy_pb2.GenerateRequest(
        messages=[user("Go on")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(seed=seed, max_tokens=300),
    )
    return PolicyServiceStub(policy.channel).Generate(request, timeout=60)


async def finished(call: AsyncIterable[policy_pb2.GenerateResponse]) -> policy_pb2.GenerateResponse.Finished:
    return [event async for event in call][-1].finished


async def activate(policy: Running, version: str, mode: int = 0) -> control_pb2.ActivateWeightsResponse:
    return await policy.control.ActivateWeights(control_pb2.ActivateWeightsRequest(version=version, mode=mode))


@pytest.mark.parametrize("mode", [control_pb2.SWAP_MODE_KEEP, control_pb2.SWAP_MODE_RECOMPUTE])
async def test_the_version_of_every_token_reaches_the_log(policy: Running, other_omni: Path, mode: int) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    await policy.control.LoadWeights(control_pb2.LoadWeightsRequest(version=version))
    calls = [aiter(long_call(policy, seed)) for seed in range(6)]
    for call in calls:
        await anext(call)
    done = await activate(policy, version, mode)
    answers = await asyncio.gather(*(finished(call) for call in calls))
    assert done.median_step_gap_seconds > 0
    assert 0 < done.longest_step_gap_seconds < 5
    logged = {event.response_id: event for event in await policy.events(RESPONSES, 6)}
    assert sorted(map(spans_of, logged.values())) == sorted(map(spans_of, answers))
    mixed = 0
    for event in logged.values():
        spans = spans_of(event)
        assert [begin for _, begin, _ in spans] == [0, *(end for _, _, end in spans[:-1])]
        assert spans[-1][2] == len(event.output_token_ids) == len(event.output_logprobs)
        mixed += [name for name, _, _ in spans] == [BASE, version]
    assert mixed >= 3  # the others had ended by themselves


def spans_of(message: object) -> list[tuple[str, int, int]]:
    return [(span.version, span.begin, span.end) for span in message.version_spans]  # type: ignore[attr-defined]


async def test_two_activations_at_once_follow_each_other(policy: Running, other_omni: Path) -> None:
    versions = [publish_variant(policy.registry, "policy", other_omni, BASE) for _ in range(2)]
    calls = [long_call(policy, seed) for seed in range(4)]
    done = await asyncio.gather(*(activate(policy, version) for version in versions))
    # Which call arrives first is open; the other one found its work complete.
    first, second = sorted(done, key=lambda one: one.previous_version != BASE)
    assert (first.previous_version, second.previous_version) == (BASE, first.weights.version)
    answers = await asyncio.gather(*(finished(call) for call in calls))
    assert all(len(answer.version_spans) == 1 for answer in answers)
    await asyncio.sleep(1.2)  # longer than the replica's look at what the log wants
    assert (await policy.status()).serving_version == second.weights.version


async def test_a_version_too_many_is_refused_and_a_promotion_takes_its_room(policy: Running, other_omni: Path) -> None:
    versions = [publish_variant(policy.registry, "policy", other_omni, BASE) for _ in range(3)]
    for version in versions[:2]:
        await policy.control.LoadWeights(control_pb2.LoadWeightsRequest(version=version))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await policy.control.LoadWeights(control_pb2.LoadWeightsRequest(version=versions[2]))
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"unload {versions[0]} or {versions[1]}" in str(refused.value.details())
    announce(policy.log, "policy", versions[2], PROMOTED, decided_by="gate")
    status = await policy.until_serving(versions[2])
    assert status.swap_failure == ""
    assert len(status.weights) <= 3


async def test_a_dead_engine_is_not_serving_until_its_weights_are_back(
    policy: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying_step(engine: Engine) -> None:
        raise SystemExit("somebody called exit")

    seen: list[int] = []
    say = policy.replica.promotions._set_serving

    async def watched(serving: bool) -> None:
        seen.append(SERVING if serving else NOT_SERVING)
        await say(serving)

    policy.replica.promotions._set_serving = watched
    before = await finished(long_call(policy, 1))
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", dying_step)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await finished(long_call(policy, 1))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "the engine has stopped" in str(refused.value.details())

    async def said() -> list[int]:
        return seen

    await eventually(said, lambda found: NOT_SERVING in found and found[-1] == SERVING)
    assert (await finished(long_call(policy, 1))).output_token_ids == before.output_token_ids


async def test_weights_that_the_host_lost_between_load_and_switch_are_loaded_again(
    tmp_path: Path, random_omni: Path
) -> None:
    host = FakeHost()
    host.activation_errors = [HostError("NOT_FOUND", "version 'policy-000000' is not loaded on this replica")]
    async with running(settings_for(tmp_path, random_omni), host=host) as policy:
        assert (await policy.status()).swap_failure == ""
        assert host.serving == BASE


async def test_a_promotion_that_arrives_before_its_folder_waits_for_it(policy: Running, other_omni: Path) -> None:
    elsewhere = Registry(policy.settings.home / "elsewhere")
    elsewhere.import_base("policy", policy.settings.model_dir)
    version = publish_variant(elsewhere, "policy", other_omni, BASE)
    announce(policy.log, "policy", version, PROMOTED, decided_by="gate")
    status = await policy.until(lambda status: status.swap_failure)
    assert (status.serving_version, version in status.swap_failure) == (BASE, True)
    assert await policy.health() == SERVING
    elsewhere.path(version).rename(policy.settings.effective_registry_dir / version)
    assert (await policy.until_serving(version)).swap_failure == ""
