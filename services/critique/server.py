"""CritiqueService: a prompt and its answer in, words about the answer out."""

import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from anyloop.log import CRITIQUES
from anyloop.modality import Modality
from anyloop.sequence import SegmentStream
from anyloop.telemetry import metrics, tracing
from protos.anyloop.v1 import critique_pb2, critique_pb2_grpc, events_pb2, scoring_pb2, types_pb2
from services.hosts.interface import ModelHost
from services.replica.deadline import Deadline
from services.replica.generation import Output, carried, generate
from services.replica.inflight import InFlight, relay
from services.replica.prompts import PromptBuilder, check_identifier
from services.replica.recorder import Recorder
from services.replica.sampling import SamplingDefaults, resolve, to_host
from services.replica.scoring import Scores
from services.rpc.errors import invalid

SERVICE = critique_pb2.DESCRIPTOR.services_by_name["CritiqueService"].full_name
MODEL = "critique"

Send = Callable[[critique_pb2.CritiqueResponse], None]


@dataclass(frozen=True)
class Asked:
    """A request, checked and rendered. `key` is who waits in turn with others: here, a connection."""

    request: critique_pb2.CritiqueRequest
    key: str
    critique_id: str
    prompt: list[int]
    sampling: types_pb2.SamplingParams


class CritiqueServer(critique_pb2_grpc.CritiqueServiceServicer):
    def __init__(
        self,
        host: ModelHost,
        prompts: PromptBuilder,
        recorder: Recorder,
        inflight: InFlight,
        defaults: SamplingDefaults,
        capacity: int,
        longest_seconds: float,
    ) -> None:
        """As PolicyServer."""
        self._host = host
        self._prompts = prompts
        self._recorder = recorder
        self._inflight = inflight
        self._defaults = defaults
        self._capacity = capacity
        self._longest_seconds = longest_seconds
        self._scores = Scores(host, MODEL, prompts, inflight, longest_seconds)
        metrics.expect_model(MODEL)

    async def Critique(
        self, request: critique_pb2.CritiqueRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[critique_pb2.CritiqueResponse]:
        deadline = Deadline.of(context, self._longest_seconds)
        work = partial(self._answer, request, context.peer(), deadline)
        async with aclosing(relay(context, self._inflight, work)) as events:
            async for event in events:
                yield event

    async def Score(
        self, request: scoring_pb2.ScoreRequest, context: grpc.aio.ServicerContext
    ) -> scoring_pb2.ScoreResponse:
        return await self._scores.answer(request, context)

    async def _answer(self, request: critique_pb2.CritiqueRequest, key: str, deadline: Deadline, send: Send) -> None:
        if request.response_id:
            self._recorder.admit()
        asked = await self._check(request, key, deadline)
        output = Output()
        critique = await self._generate(asked, output, deadline, send)
        await self._record(asked, critique, output)
        send(_finished(asked, critique, output))

    async def _generate(self, asked: Asked, output: Output, deadline: Deadline, send: Send) -> str:
        """The whole critique, its pieces sent as they come."""
        host_request: dict[str, Any] = {
            "request_id": asked.critique_id,
            "prompt": asked.prompt,
            "sampling": to_host(asked.sampling),
            "modalities": [str(Modality.TEXT)],
            "version": asked.request.critique_version,
            "key": asked.key,
        }
        stream = SegmentStream(self._prompts.sequencer)
        pieces: list[str] = []

        def say(segments: list[str]) -> None:
            for text in segments:
                pieces.append(text)
                delta = critique_pb2.CritiqueResponse.TextDelta(text=text)
                send(critique_pb2.CritiqueResponse(text=delta))

        started = False
        with tracing.span("critique", attributes={"gen_ai.usage.input_tokens": len(asked.prompt)}) as span:
            host_request |= carried()
            async with aclosing(generate(self._host, MODEL, host_request, output, deadline)) as portions:
                async for portion in portions:
                    if not started:
                        started = True
                        span.event("gen_ai.first_token")
                        send(_started(asked, output))
                    say([segment for segment in stream.feed(portion.tokens) if isinstance(segment, str)])
            span.set({"gen_ai.usage.output_tokens": len(output.tokens), "gen_ai.response.model": output.version})
        say([segment for segment in stream.finish() if isinstance(segment, str)])
        return "".join(pieces).strip()

    async def _check(self, request: critique_pb2.CritiqueRequest, key: str, deadline: Deadline) -> Asked:
        """Raises RpcError INVALID_ARGUMENT or NOT_FOUND."""
        check_identifier(request.response_id, "response_id")
        check_identifier(request.conversation_id, "conversation_id")
        if request.prompt_token_ids:
            if request.messages or request.HasField("response"):
                raise invalid("send messages and response, or prompt_token_ids, not both")
            prompt = self._prompts.given(request.prompt_token_ids)
        else:
            if not request.HasField("response"):
                raise invalid("response is missing: send the answer that the critique is about")
            self._prompts.check_length([*request.messages, request.response])
            turns = await self._prompts.turns(request.messages, deadline)
            answer = await self._prompts.segments(request.response, "response", deadline)
            prompt = self._prompts.sequencer.critique_prompt(turns, answer)
        return Asked(
            request=request,
            key=key,
            critique_id=check_identifier(request.critique_id, "critique_id") or f"crit-{uuid.uuid4().hex}",
            prompt=prompt,
            sampling=resolve(request.sampling, self._defaults, len(prompt), self._capacity),
        )

    async def _record(self, asked: Asked, critique: str, output: Output) -> None:
        """A critique of a logged response is an event; half of one says nothing and is none."""
        if not asked.request.response_id:
            return
        event = events_pb2.CritiqueEvent(
            critique_id=asked.critique_id,
            response_id=asked.request.response_id,
            conversation_id=asked.request.conversation_id,
            critique=critique,
            critique_version=output.version,
            created_unix_ms=time.time_ns() // 1_000_000,
        )
        key = asked.request.conversation_id or asked.request.response_id
        await self._recorder.record(CRITIQUES, event, key, asked.critique_id)


def _started(asked: Asked, output: Output) -> critique_pb2.CritiqueResponse:
    started = critique_pb2.CritiqueResponse.Started(critique_id=asked.critique_id, critique_version=output.version)
    return critique_pb2.CritiqueResponse(started=started)


def _finished(asked: Asked, critique: str, output: Output) -> critique_pb2.CritiqueResponse:
    return critique_pb2.CritiqueResponse(
        finished=critique_pb2.CritiqueResponse.Finished(
            finish_reason=output.finish,
            usage=types_pb2.Usage(prompt_tokens=len(asked.prompt), completion_tokens=len(output.tokens)),
            critique=critique,
            output_token_ids=output.tokens,
            output_logprobs=output.logprobs,
            version_spans=output.spans,
        )
    )
