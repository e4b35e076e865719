"""The serving side as the trainer sees it: sample, critique, encode, stage weights, over the public gRPC contracts.

Requests carry rendered prompts and are unlogged: what the trainer asks for itself is not a response that people saw.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType, TracebackType
from typing import TypeVar

import grpc

from anyloop.config import Settings
from anyloop.modality import Modality
from anyloop.sequence import Codes
from anyloop.telemetry.context import outgoing
from anyloop.transport import open_channel
from protos.anyloop.v1 import (
    control_pb2,
    control_pb2_grpc,
    critique_pb2,
    critique_pb2_grpc,
    decoder_pb2,
    decoder_pb2_grpc,
    policy_pb2,
    policy_pb2_grpc,
    scoring_pb2,
    types_pb2,
)

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

MODALITIES = {
    Modality.TEXT: types_pb2.MODALITY_TEXT,
    Modality.IMAGE: types_pb2.MODALITY_IMAGE,
    Modality.AUDIO: types_pb2.MODALITY_AUDIO,
    Modality.VIDEO: types_pb2.MODALITY_VIDEO,
}
FROM_PROTO = {number: modality for modality, number in MODALITIES.items()}
_SCORED_AT_A_TIME = 64
RETRIABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}


class ServiceError(Exception):
    """A service refused or stayed away. `retriable`: the same call may succeed later; `away`: nobody answered it."""

    def __init__(self, message: str, *, retriable: bool, away: bool = False) -> None:
        super().__init__(message)
        self.retriable = retriable
        self.away = away


@dataclass(frozen=True)
class Sample:
    """One sampled answer with what the engine logged about it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: str
    finished: bool  # ended by itself, not by the token limit
    spans: tuple[tuple[str, int, int], ...] = ()  # which version made tokens [begin, end)


@dataclass(frozen=True)
class SampleRequest:
    prompt: tuple[int, ...]
    modalities: tuple[Modality, ...] = ()  # empty: the policy chooses
    temperature: float = 1.0
    max_tokens: int = 96
    seed: int | None = None
    version: str = ""  # a resident version, or the serving one

    def sampling(self) -> types_pb2.SamplingParams:
        params = types_pb2.SamplingParams(temperature=self.temperature, top_p=1.0, top_k=0, max_tokens=self.max_tokens)
        if self.seed is not None:
            params.seed = self.seed
        return params


class Services:
    """Async clients of the policy, critique, decoder and control services; `concurrency` requests in flight at most."""

    def __init__(self, settings: Settings, concurrency: int = 32, timeout: float = 120.0, attempts: int = 6) -> None:
        self._timeout, self._attempts = timeout, attempts
        self._gate = asyncio.Semaphore(concurrency)
        self._channels = [
            open_channel(settings, settings.policy_target, service=_name(policy_pb2, "PolicyService")),
            open_channel(settings, settings.critique_target, service=_name(critique_pb2, "CritiqueService")),
            open_channel(settings, settings.decoder_target, service=_name(decoder_pb2, "DecoderService")),
            open_channel(settings, settings.policy_control_target),
            open_channel(settings, settings.critique_control_target),
        ]
        policy, critique, decoder, policy_control, critique_control = self._channels
        self._policy = policy_pb2_grpc.PolicyServiceStub(policy)
        self._critique = critique_pb2_grpc.CritiqueServiceStub(critique)
        self._decoder = decoder_pb2_grpc.DecoderServiceStub(decoder)
        self._control = {
            "policy": control_pb2_grpc.ControlServiceStub(policy_control),
            "critique": control_pb2_grpc.ControlServiceStub(critique_control),
        }

    async def __aenter__(self) -> "Services":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels:
            await channel.close()

    async def sample(self, request: SampleRequest) -> Sample:
        """One answer as tokens. Raises ServiceError."""
        message = policy_pb2.GenerateRequest(
            prompt_token_ids=request.prompt,
            modalities=[MODALITIES[modality] for modality in request.modalities],
            sampling=request.sampling(),
            policy_version=request.version,
            unlogged=True,
            tokens_only=True,
        )
        done = await self._finished(lambda: self._policy.Generate(message, timeout=self._timeout, metadata=outgoing()))
        version = done.version_spans[0].version if done.version_spans else request.version
        return Sample(
            tuple(done.output_token_ids),
            tuple(done.output_logprobs),
            version,
            done.finish_reason == types_pb2.FINISH_REASON_STOP,
            tuple((span.version, span.begin, span.end) for span in done.version_spans),
        )

    async def score(
        self, asked: Sequence[tuple[SampleRequest, Sequence[int]]], version: str
    ) -> list[tuple[float, ...]]:
        """Log-probabilities of given answers under `version`, as the engine logs them. Raises ServiceError."""
        sequences = [
            scoring_pb2.ScoreSequence(
                prompt_token_ids=request.prompt,
                output_token_ids=tokens,
                modalities=[MODALITIES[modality] for modality in request.modalities],
                max_tokens=request.max_tokens,
            )
            for request, tokens in asked
        ]
        scores: list[tuple[float, ...]] = []
        for begin in range(0, len(sequences), _SCORED_AT_A_TIME):
            message = scoring_pb2.ScoreRequest(
                sequences=sequences[begin : begin + _SCORED_AT_A_TIME], version=version, grammar=True
            )
            answer = await self._call(lambda: self._policy.Score(message, timeout=self._timeout, metadata=outgoing()))  # noqa: B023
            scores.extend(tuple(one.logprobs) for one in answer.scores)
        return scores

    async def generate(self, message: policy_pb2.GenerateRequest) -> types_pb2.Message:
        """The whole answer to `message`, media stored and named by reference. Raises ServiceError."""
        done = await self._finished(lambda: self._policy.Generate(message, timeout=self._timeout, metadata=outgoing()))
        return done.message

    async def critique(self, request: SampleRequest) -> str:
        """What the critique model says to a rendered critique prompt. Raises ServiceError."""
        message = critique_pb2.CritiqueRequest(
            prompt_token_ids=request.prompt, sampling=request.sampling(), critique_version=request.version
        )
        done = await self._finished(
            lambda: self._critique.Critique(message, timeout=self._timeout, metadata=outgoing())
        )
        return str(done.critique).strip()

    async def encode(self, part: types_pb2.ContentPart) -> Codes:
        """A media part as codec codes. Raises ServiceError."""
        if part.WhichOneof("part") == "media":
            number = part.media.modality
            message = decoder_pb2.EncodeRequest(modality=number, media=part.media)
        else:
            kind = part.inline_media.mime_type.split("/")[0]
            if kind not in ("image", "audio", "video"):
                raise ServiceError(f"no codec takes {part.inline_media.mime_type!r}", retriable=False)
            number = MODALITIES[Modality(kind)]
            message = decoder_pb2.EncodeRequest(modality=number, inline_media=part.inline_media)
        answer = await self._call(lambda: self._decoder.Encode(message, timeout=self._timeout, metadata=outgoing()))
        return Codes(FROM_PROTO[number], tuple(answer.codes))

    async def status(self, lineage: str) -> control_pb2.ReplicaStatus:
        return await self._call(
            lambda: self._control[lineage].GetStatus(
                control_pb2.GetStatusRequest(), timeout=self._timeout, metadata=outgoing()
            )
        )

    async def stage(self, version: str, lineage: str = "policy") -> control_pb2.WeightsInfo:
        """Loads `version` beside the serving weights, for pinned requests. Raises ServiceError with the refusal."""
        request = control_pb2.LoadWeightsRequest(version=version)
        return await self._call(
            lambda: self._control[lineage].LoadWeights(request, timeout=self._timeout, metadata=outgoing()),
            # A replica that is too slow has not refused the weights.
            also_retriable=frozenset({grpc.StatusCode.DEADLINE_EXCEEDED}),
        )

    async def unstage(self, version: str, lineage: str = "policy") -> None:
        """Drops a staged version; one that meanwhile serves stays."""
        request = control_pb2.UnloadWeightsRequest(version=version)
        try:
            await self._call(
                lambda: self._control[lineage].UnloadWeights(request, timeout=self._timeout, metadata=outgoing())
            )
        except ServiceError as error:
            log.warning("%s was not unloaded: %s", version, error)

    async def _finished(self, call: Callable[[], grpc.aio.UnaryStreamCall]) -> policy_pb2.GenerateResponse.Finished:
        async def last() -> policy_pb2.GenerateResponse.Finished:
            finished = None
            async for event in call():
                if event.WhichOneof("event") == "finished":
                    finished = event.finished
            if finished is None:
                raise ServiceError("the stream ended without Finished", retriable=True)
            return finished

        return await self._call(last)

    async def _call(
        self, make: Callable[[], Awaitable[T]], also_retriable: frozenset[grpc.StatusCode] = frozenset()
    ) -> T:
        async with self._gate:
            for attempt in range(self._attempts):
                try:
                    return await make()
                except grpc.aio.AioRpcError as error:
                    code = error.code()
                    failure = ServiceError(
                        f"{code.name}: {error.details()}",
                        retriable=code in RETRIABLE | also_retriable,
                        away=code is grpc.StatusCode.UNAVAILABLE,
                    )
                except ServiceError as error:
                    failure = error
                if not failure.retriable or attempt + 1 == self._attempts:
                    raise failure
                await asyncio.sleep(min(0.1 * 2**attempt, 3.0))
        raise AssertionError("unreachable")


async def gather(function: Callable[[T], Awaitable[R]], items: Iterable[T], what: str) -> list[R | None]:
    """`function` of every item, concurrently, in order.

    An item that is refused for its own sake gives None and a warning; a service that stays away ends all.
    """

    async def one(item: T) -> R | None:
        try:
            return await function(item)
        except ServiceError as error:
            if error.retriable:
                raise
            log.warning("%s refused: %s", what, error)
            return None

    tasks = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _name(module: ModuleType, service: str) -> str:
    """The full name of a service, which its health goes by."""
    return str(module.DESCRIPTOR.services_by_name[service].full_name)


def modalities_of(numbers: Sequence[int]) -> tuple[Modality, ...]:
    """Protobuf modality numbers to names; unspecified ones are passed over."""
    return tuple(FROM_PROTO[number] for number in numbers if number in FROM_PROTO)
