"""Weights change under running streams: none is dropped or mixed, what is corrupt is refused, the log decides."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.log import RESPONSES
from anyloop.registry import announce
from anyloop.registry.announce import PROMOTED, REJECTED
from protos.anyloop.v1 import control_pb2, policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from tests.services.running_replica import NOT_SERVING, SERVING, Running, publish_variant, running, settings_for, user

BASE = "policy-000000"


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni)) as replica:
        yield replica


def long_request(seed: int, **fields: object) -> policy_pb2.GenerateRequest:
    return policy_pb2.GenerateRequest(
        messages=[user("Go on")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(seed=seed, max_tokens=150),
        **fields,
    )


async def answer(policy: Running, request: policy_pb2.GenerateRequest) -> policy_pb2.GenerateResponse.Finished:
    events = [event async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=60)]
    return events[-1].finished


def corrupt(policy: Running, version: str) -> None:
    file = policy.registry.path(version) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 0xFF
    file.write_bytes(bytes(data))


async def refused(call: object) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    return caught.value.code(), str(caught.value.details())


async def test_the_base_serves_first_and_proves_it_by_its_digest(policy: Running) -> None:
    status = await policy.status()
    assert (status.model_name, status.serving_version, status.wanted_version) == ("policy", BASE, BASE)
    assert [w.digest for w in status.weights] == [policy.registry.manifest(BASE).weights_digest]
    assert await policy.health("anyloop.v1.PolicyService") == SERVING


async def test_a_promotion_swaps_under_running_streams_and_drops_none(policy: Running, other_omni: Path) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    before = await answer(policy, long_request(1))
    running_calls = [asyncio.create_task(answer(policy, long_request(seed))) for seed in range(8)]
    await policy.until(lambda status: status.requests_running == 8)
    announce(policy.log, "policy", version, PROMOTED, decided_by="gate")
    await policy.until_serving(version)
    answers = await asyncio.gather(*running_calls)
    assert all(a.finish_reason != types_pb2.FINISH_REASON_CANCELLED for a in answers)
    assert all([span.version for span in a.version_spans] == [BASE] for a in answers)
    assert answers[1].output_token_ids == before.output_token_ids
    after = await answer(policy, long_request(1))
    assert [span.version for span in after.version_spans] == [version]
    assert after.output_token_ids != before.output_token_ids
    status = await policy.status()
    assert [(w.version, w.digest) for w in status.weights] == [
        (version, policy.registry.manifest(version).weights_digest)
    ]
    announce(policy.log, "policy", BASE, PROMOTED, reason="rollback", decided_by="ann")
    await policy.until_serving(BASE)
    assert (await answer(policy, long_request(1))).output_token_ids == before.output_token_ids


async def test_a_staged_version_answers_pinned_requests_only(policy: Running, other_omni: Path) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    info = await policy.control.LoadWeights(control_pb2.LoadWeightsRequest(version=version))
    assert (info.serving, info.digest) == (False, policy.registry.manifest(version).weights_digest)
    pinned, plain = await asyncio.gather(
        answer(policy, long_request(1, policy_version=version, unlogged=True)), answer(policy, long_request(1))
    )
    assert [span.version for span in pinned.version_spans] == [version]
    assert [span.version for span in plain.version_spans] == [BASE]
    announce(policy.log, "policy", version, REJECTED, decided_by="gate")
    await policy.control.UnloadWeights(control_pb2.UnloadWeightsRequest(version=version))
    status = await policy.status()
    assert (status.serving_version, len(status.weights)) == (BASE, 1)


async def test_an_operator_activates_by_hand_and_hears_what_it_cost(policy: Running, other_omni: Path) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    request = control_pb2.ActivateWeightsRequest(version=version, mode=control_pb2.SWAP_MODE_FINISH)
    done = await policy.control.ActivateWeights(request)
    assert (done.weights.version, done.weights.serving, done.previous_version) == (version, True, BASE)
    assert 0 <= done.stall_seconds < 1
    assert done.load_seconds > 0
    await asyncio.sleep(1.2)  # longer than the replica's look at what the log wants
    assert (await policy.status()).serving_version == version


async def test_a_corrupt_promotion_is_refused_and_the_old_weights_go_on(policy: Running, other_omni: Path) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    corrupt(policy, version)
    announce(policy.log, "policy", version, PROMOTED, decided_by="gate")
    status = await policy.until(lambda status: status.swap_failure)
    assert "model.safetensors" in status.swap_failure
    assert (status.serving_version, status.wanted_version) == (BASE, version)
    assert await policy.health() == SERVING
    assert (await answer(policy, long_request(1))).version_spans[0].version == BASE
    good = publish_variant(policy.registry, "policy", other_omni, BASE)
    announce(policy.log, "policy", good, PROMOTED, decided_by="gate")
    assert (await policy.until_serving(good)).swap_failure == ""


async def test_weights_and_manifest_changed_after_the_decision_are_refused(policy: Running, other_omni: Path) -> None:
    """Whoever can write to the registry can make files and manifest agree; the log knows what was decided on."""
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    announce(policy.log, "policy", version, PROMOTED, digest="0" * 64, decided_by="gate")
    status = await policy.until(lambda status: status.swap_failure)
    assert "they were changed since" in status.swap_failure
    assert status.serving_version == BASE
    assert await policy.health() == SERVING
    code, details = await refused(policy.control.ActivateWeights(control_pb2.ActivateWeightsRequest(version=version)))
    assert (code, "they were changed since" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    digest = policy.registry.manifest(version).weights_digest
    announce(policy.log, "policy", version, PROMOTED, digest=digest, decided_by="ann")
    assert (await policy.until_serving(version)).swap_failure == ""


async def test_control_refuses_what_cannot_be_loaded_with_a_reason(policy: Running, other_omni: Path) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    corrupt(policy, version)
    critic = publish_variant(policy.registry, "critique", other_omni, "")
    control = policy.control
    load, activate = control_pb2.LoadWeightsRequest, control_pb2.ActivateWeightsRequest
    code, details = await refused(control.LoadWeights(load(version=version)))
    assert (code, "SHA-256" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    code, details = await refused(control.ActivateWeights(activate(version=version)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    code, details = await refused(control.LoadWeights(load(version="policy-999999")))
    assert (code, "policy-999999" in details) == (grpc.StatusCode.NOT_FOUND, True)
    code, details = await refused(control.LoadWeights(load(version=critic)))
    assert (code, "critique checkpoint" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    code, details = await refused(control.LoadWeights(load()))
    assert (code, "version is empty" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, details = await refused(control.ActivateWeights(activate(version=BASE, mode=9)))
    assert (code, "swap mode 9" in details) == (grpc.StatusCode.INVALID_ARGUMENT, True)
    code, details = await refused(control.UnloadWeights(control_pb2.UnloadWeightsRequest(version=BASE)))
    assert (code, "serving" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    code, details = await refused(control.UnloadWeights(control_pb2.UnloadWeightsRequest(version="nothing")))
    assert code is grpc.StatusCode.NOT_FOUND
    assert (await policy.status()).serving_version == BASE


async def test_a_replica_starts_with_what_the_log_promoted(tmp_path: Path, random_omni: Path, other_omni: Path) -> None:
    settings = settings_for(tmp_path, random_omni)
    async with running(settings) as first:
        version = publish_variant(first.registry, "policy", other_omni, BASE)
        announce(first.log, "policy", version, PROMOTED, decided_by="gate")
        await first.until_serving(version)
    async with running(settings) as second:
        assert (await second.status()).serving_version == version
        assert (await answer(second, long_request(1))).version_spans[0].version == version


async def test_a_replica_that_cannot_verify_the_promoted_weights_is_not_serving_and_says_why(
    tmp_path: Path, random_omni: Path, other_omni: Path
) -> None:
    settings = settings_for(tmp_path, random_omni)
    async with running(settings) as first:
        version = publish_variant(first.registry, "policy", other_omni, BASE)
        corrupt(first, version)
        announce(first.log, "policy", version, PROMOTED, decided_by="gate")
    async with running(settings, wait=False) as second:
        status = await second.until(lambda status: status.swap_failure)
        assert version in status.swap_failure
        assert await second.health() == NOT_SERVING
        code, details = await refused(answer(second, long_request(1)))
        assert (code, "no verified weights" in details) == (grpc.StatusCode.UNAVAILABLE, True)
        announce(second.log, "policy", BASE, PROMOTED, reason="rollback", decided_by="ann")
        await second.until_health(SERVING)


async def test_a_drain_lets_running_answers_end_and_admits_no_more(policy: Running) -> None:
    task = asyncio.create_task(answer(policy, long_request(1)))
    await policy.until(lambda status: status.requests_running)
    drain = policy.control.Drain(control_pb2.DrainRequest(timeout_seconds=30))
    await policy.until_health(NOT_SERVING)
    assert (await policy.status()).draining
    code, details = await refused(answer(policy, long_request(2)))
    assert (code, "draining" in details) == (grpc.StatusCode.UNAVAILABLE, True)
    assert (await task).finish_reason in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH)
    assert (await drain).aborted_requests == 0
    await asyncio.sleep(1.2)  # longer than the replica's look at its weights: it stays away
    assert await policy.health() == NOT_SERVING


async def test_a_drain_out_of_patience_ends_answers_with_a_status_and_logs_them(policy: Running) -> None:
    request = long_request(1)
    request.sampling.max_tokens = 370
    task = asyncio.create_task(answer(policy, request))
    await policy.until(lambda status: status.requests_running)
    drained = await policy.control.Drain(control_pb2.DrainRequest(timeout_seconds=0.02))
    assert drained.aborted_requests == 1
    code, details = await refused(task)
    assert (code, "shut down before" in details) == (grpc.StatusCode.UNAVAILABLE, True)
    (logged,) = await policy.events(RESPONSES, 1)
    assert logged.finish_reason == types_pb2.FINISH_REASON_CANCELLED
