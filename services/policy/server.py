"""PolicyService: one request from its messages to its logged, finished answer."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from anyloop.log import RESPONSES
from anyloop.log.join import event_id
from anyloop.modality import Modality
from anyloop.sequence import Codes
from anyloop.telemetry import metrics, tracing
from anyloop.telemetry.context import bind
from protos.anyloop.v1 import events_pb2, policy_pb2, policy_pb2_grpc, scoring_pb2, types_pb2
from services.hosts.interface import ModelHost
from services.policy.responses import Answer
from services.replica.deadline import Deadline
from services.replica.generation import Output, carried, generate
from services.replica.inflight import InFlight, relay
from services.replica.prompts import MediaCodes, PromptBuilder, check_identifier, proto_modality
from services.replica.recorder import Recorder
from services.replica.sampling import SamplingDefaults, resolve, to_host
from services.replica.scoring import Scores
from services.rpc.attempt import attempt_of
from services.rpc.errors import invalid

SERVICE = policy_pb2.DESCRIPTOR.services_by_name["PolicyService"].full_name
MODEL = "policy"
MAX_METADATA, MAX_METADATA_CHARACTERS = 16, 512

Send = Callable[[policy_pb2.GenerateResponse], None]


@dataclass(frozen=True)
class Asked:
    """A request, checked and rendered. `key` is who waits in turn with others."""

    request: policy_pb2.GenerateRequest
    key: str
    response_id: str
    conversation_id: str
    prompt: list[int]
    modalities: list[Modality]
    sampling: types_pb2.SamplingParams
    attempt: int


class PolicyServer(policy_pb2_grpc.PolicyServiceServicer):
    def __init__(
        self,
        host: ModelHost,
        prompts: PromptBuilder,
        media: MediaCodes,
        recorder: Recorder,
        inflight: InFlight,
        defaults: SamplingDefaults,
        capacity: int,
        longest_seconds: float,
    ) -> None:
        """`capacity` is the most tokens of prompt and answer; `longest_seconds` bounds calls without a deadline."""
        self._host = host
        self._prompts = prompts
        self._media = media
        self._recorder = recorder
        self._inflight = inflight
        self._defaults = defaults
        self._capacity = capacity
        self._longest_seconds = longest_seconds
        self._scores = Scores(host, MODEL, prompts, inflight, longest_seconds)
        metrics.expect_model(MODEL)

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        deadline = Deadline.of(context, self._longest_seconds)
        key = request.principal or context.peer()
        work = partial(self._answer, request, key, attempt_of(context), deadline)
        async with aclosing(relay(context, self._inflight, work)) as events:
            async for event in events:
                yield event

    async def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        return await self._scores.answer(request, context)

    async def _answer(
        self, request: policy_pb2.GenerateRequest, key: str, attempt: int, deadline: Deadline, send: Send
    ) -> None:
        if not request.unlogged:
            self._recorder.admit()
        asked = await self._check(request, key, attempt, deadline)
        bind(response_id=asked.response_id)
        decode = None if request.tokens_only else partial(self._decode, deadline)
        answer = Answer(self._prompts.sequencer, decode, asked.sampling.stop)
        output = Output()
        try:
            await self._generate(asked, answer, output, deadline, send)
        except BaseException:  # also a cancellation: what was generated is recorded, then the reason goes its way
            output.finish = types_pb2.FINISH_REASON_CANCELLED
            await self._record(asked, answer, output)
            raise
        await self._record(asked, answer, output)
        send(_finished(asked, answer, output))

    async def _generate(self, asked: Asked, answer: Answer, output: Output, deadline: Deadline, send: Send) -> None:
        host_request: dict[str, Any] = {
            "request_id": asked.response_id,
            "prompt": asked.prompt,
            "sampling": to_host(asked.sampling),
            "modalities": [str(modality) for modality in asked.modalities] or None,
            "version": asked.request.policy_version,
            "key": asked.key,
        }
        started = False
        with tracing.span("answer", attributes={"gen_ai.usage.input_tokens": len(asked.prompt)}) as span:
            host_request |= carried()
            async with aclosing(generate(self._host, MODEL, host_request, output, deadline)) as portions:
                async for portion in portions:
                    if not started:
                        started = True
                        span.event("gen_ai.first_token")
                        send(_started(asked, output))
                    async for event in answer.feed(portion):
                        send(event)
            span.set({"gen_ai.usage.output_tokens": len(output.tokens), "gen_ai.response.model": output.version})
        for event in answer.finish():
            send(event)

    async def _check(self, request: policy_pb2.GenerateRequest, key: str, attempt: int, deadline: Deadline) -> Asked:
        """Raises RpcError INVALID_ARGUMENT or NOT_FOUND."""
        if request.prompt_token_ids and request.messages:
            raise invalid("send messages or prompt_token_ids, not both")
        longest = max((len(text) for pair in request.metadata.items() for text in pair), default=0)
        if len(request.metadata) > MAX_METADATA or longest > MAX_METADATA_CHARACTERS:
            raise invalid(
                f"metadata takes at most {MAX_METADATA} entries, with names and values of at most "
                f"{MAX_METADATA_CHARACTERS} characters"
            )
        response_id = check_identifier(request.response_id, "response_id") or f"resp-{uuid.uuid4().hex}"
        modalities = self._prompts.answer_modalities(request.modalities)
        if request.prompt_token_ids:
            prompt = self._prompts.given(request.prompt_token_ids)
        else:
            turns = await self._prompts.turns(request.messages, deadline)
            prompt = self._prompts.sequencer.prompt(turns)
        return Asked(
            request=request,
            key=key,
            response_id=response_id,
            conversation_id=check_identifier(request.conversation_id, "conversation_id") or response_id,
            prompt=prompt,
            modalities=modalities,
            sampling=resolve(request.sampling, self._defaults, len(prompt), self._capacity),
            attempt=attempt,
        )

    async def _decode(self, deadline: Deadline, codes: Codes) -> types_pb2.MediaRef:
        return await self._media.decode(codes, deadline)

    async def _record(self, asked: Asked, answer: Answer, output: Output) -> None:
        """An answer of which the client may have seen something is in the log; one that never began is not."""
        if output.tokens and not asked.request.unlogged:
            event = _event(asked, answer, output)
            await self._recorder.record(RESPONSES, event, asked.conversation_id, event_id(event))


def _started(asked: Asked, output: Output) -> policy_pb2.GenerateResponse:
    return policy_pb2.GenerateResponse(
        started=policy_pb2.GenerateResponse.Started(
            response_id=asked.response_id, policy_version=output.version, prompt_tokens=len(asked.prompt)
        )
    )


def _finished(asked: Asked, answer: Answer, output: Output) -> policy_pb2.GenerateResponse:
    return policy_pb2.GenerateResponse(
        finished=policy_pb2.GenerateResponse.Finished(
            finish_reason=output.finish,
            usage=types_pb2.Usage(prompt_tokens=len(asked.prompt), completion_tokens=len(output.tokens)),
            version_spans=output.spans,
            prompt_token_ids=asked.prompt,
            output_token_ids=output.tokens,
            output_logprobs=output.logprobs,
            message=answer.message,
            top_logprobs=output.top_logprobs,
        )
    )


def _event(asked: Asked, answer: Answer, output: Output) -> events_pb2.ResponseEvent:
    return events_pb2.ResponseEvent(
        response_id=asked.response_id,
        conversation_id=asked.conversation_id,
        principal=asked.request.principal,
        messages=asked.request.messages,
        response=answer.message,
        prompt_token_ids=asked.prompt,
        output_token_ids=output.tokens,
        output_logprobs=output.logprobs,
        sampling=asked.sampling,
        version_spans=output.spans,
        modalities=[proto_modality(modality) for modality in asked.modalities],
        finish_reason=output.finish,
        created_unix_ms=time.time_ns() // 1_000_000,
        metadata=asked.request.metadata,
        attempt=asked.attempt,
    )
