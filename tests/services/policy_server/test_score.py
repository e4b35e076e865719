"""PolicyService.Score: what Generate logged, over the wire; refused with a status like every other call."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from protos.anyloop.v1 import control_pb2, policy_pb2, scoring_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.hosts.interface import HostError
from tests.services.policy_server.fake_host import FakeHost
from tests.services.running_replica import Running, publish_variant, running, settings_for, user

BASE = "policy-000000"
IMAGE, TEXT = types_pb2.MODALITY_IMAGE, types_pb2.MODALITY_TEXT


@pytest.fixture
async def policy(tmp_path: Path, random_omni: Path) -> AsyncIterator[Running]:
    async with running(settings_for(tmp_path, random_omni)) as replica:
        yield replica


async def answer(policy: Running, **fields: object) -> policy_pb2.GenerateResponse.Finished:
    request = policy_pb2.GenerateRequest(
        messages=[user("Show me.")],
        modalities=[TEXT, IMAGE],
        sampling=types_pb2.SamplingParams(seed=5, max_tokens=50),
        tokens_only=True,
        **fields,
    )
    events = [event async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=30)]
    return events[-1].finished


async def score(policy: Running, request: scoring_pb2.ScoreRequest, within: float = 30.0) -> scoring_pb2.ScoreResponse:
    return await PolicyServiceStub(policy.channel).Score(request, timeout=within)


async def refused(policy: Running, request: scoring_pb2.ScoreRequest, within: float = 30.0) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await score(policy, request, within)
    return error.value


def sequence(finished: policy_pb2.GenerateResponse.Finished, **fields: object) -> scoring_pb2.ScoreSequence:
    return scoring_pb2.ScoreSequence(
        prompt_token_ids=finished.prompt_token_ids, output_token_ids=finished.output_token_ids, **fields
    )


async def test_scores_equal_what_generate_logged_by_serving_and_staged_weights(
    policy: Running, other_omni: Path
) -> None:
    version = publish_variant(policy.registry, "policy", other_omni, BASE)
    await policy.control.LoadWeights(control_pb2.LoadWeightsRequest(version=version))
    for pin, named in (("", BASE), (version, version)):
        finished = await answer(policy, policy_version=pin)
        asked = sequence(finished, modalities=[TEXT, IMAGE], max_tokens=50)
        scored = await score(policy, scoring_pb2.ScoreRequest(sequences=[asked, asked], version=pin, grammar=True))
        assert scored.version == named
        for one in scored.scores:
            assert list(one.logprobs) == pytest.approx(list(finished.output_logprobs), abs=1e-4)


async def test_refusals_carry_a_status(policy: Running) -> None:
    one = scoring_pb2.ScoreSequence(prompt_token_ids=[1], output_token_ids=[2])
    for request, code, words in (
        (scoring_pb2.ScoreRequest(), grpc.StatusCode.INVALID_ARGUMENT, "no sequences"),
        (scoring_pb2.ScoreRequest(sequences=[one], version="v9"), grpc.StatusCode.NOT_FOUND, "v9"),
        (
            scoring_pb2.ScoreRequest(sequences=[scoring_pb2.ScoreSequence(prompt_token_ids=[1])]),
            grpc.StatusCode.INVALID_ARGUMENT,
            "sequences[0]",
        ),
        (
            scoring_pb2.ScoreRequest(
                sequences=[scoring_pb2.ScoreSequence(prompt_token_ids=[1], output_token_ids=[2], modalities=[9])]
            ),
            grpc.StatusCode.INVALID_ARGUMENT,
            "modality 9",
        ),
    ):
        error = await refused(policy, request)
        assert (error.code(), words in str(error.details())) == (code, True)


async def test_the_deadline_is_the_callers(policy: Running) -> None:
    long = scoring_pb2.ScoreSequence(prompt_token_ids=[1] * 100, output_token_ids=[2] * 100)
    error = await refused(policy, scoring_pb2.ScoreRequest(sequences=[long] * 256), within=0.05)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await policy.until(lambda status: [w.running_requests for w in status.weights] == [0])


async def test_a_host_that_is_away_is_unavailable(tmp_path: Path, random_omni: Path) -> None:
    class Away(FakeHost):
        async def call(self, model: str, request: dict[str, object], **_: object) -> dict[str, object]:  # type: ignore[override]
            if request["op"] == "score":
                raise HostError("UNAVAILABLE", "the engine has stopped")
            return await super().call(model, request)

    async with running(settings_for(tmp_path, random_omni), host=Away()) as policy:
        one = scoring_pb2.ScoreSequence(prompt_token_ids=[1], output_token_ids=[2])
        error = await refused(policy, scoring_pb2.ScoreRequest(sequences=[one]))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
