"""Sampling features from the RPC to the engine and back into the log."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from anyloop.log import RESPONSES
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from tests.services.running_replica import Running, running, settings_for, user

ASKED = {
    "temperature": 0.75,
    "top_p": 0.875,
    "top_k": 30,
    "min_p": 0.0625,
    "repetition_penalty": 1.25,
    "presence_penalty": 0.5,
    "frequency_penalty": -0.25,
    "logit_bias": {5: -100.0, 7: 2.0},
    "top_logprobs": 4,
    "seed": 3,
    "max_tokens": 16,
}


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni)) as replica:
        yield replica


async def _ask(policy: Running, **sampling: object) -> list[policy_pb2.GenerateResponse]:
    request = policy_pb2.GenerateRequest(
        messages=[user("Say something.")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(**sampling),  # type: ignore[arg-type]
    )
    return [event async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=30)]


async def test_all_features_at_once_are_answered_with_alternatives_and_logged_as_resolved(policy: Running) -> None:
    events = await _ask(policy, **ASKED)
    finished = events[-1].finished
    assert len(finished.top_logprobs) == len(finished.output_token_ids) > 0
    for top in finished.top_logprobs:
        assert len(top.token_ids) == 4
        assert list(top.logprobs) == sorted(top.logprobs, reverse=True)
    for token, logprob, top in zip(
        finished.output_token_ids, finished.output_logprobs, finished.top_logprobs, strict=True
    ):
        assert logprob <= top.logprobs[0] + 1e-5
        if token in top.token_ids:
            assert top.logprobs[list(top.token_ids).index(token)] == pytest.approx(logprob, abs=1e-5)
    assert 5 not in finished.output_token_ids
    deltas = [event.text for event in events if event.HasField("text")]
    assert all(len(delta.token_ids) == len(delta.logprobs) == len(delta.top_logprobs) for delta in deltas)
    (logged,) = await policy.events(RESPONSES, 1)
    assert logged.sampling == types_pb2.SamplingParams(**ASKED)
    assert logged.output_logprobs == finished.output_logprobs


async def test_nobody_pays_for_alternatives_that_were_not_asked_for(policy: Running) -> None:
    events = await _ask(policy, seed=1, max_tokens=8)
    assert not events[-1].finished.top_logprobs
    assert not any(event.text.top_logprobs for event in events if event.HasField("text"))


async def test_a_bias_on_a_token_that_does_not_exist_is_refused(policy: Running) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await _ask(policy, logit_bias={10**6: 1.0})
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "logit_bias names token 1000000" in (refused.value.details() or "")
