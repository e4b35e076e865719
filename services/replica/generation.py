"""One generation in the model host, as portions of tokens; what it produced so far is always at hand."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anyloop.telemetry import context, metrics
from protos.anyloop.v1 import types_pb2
from services.hosts.interface import HostError, ModelHost
from services.replica.deadline import Deadline

_FINISH = {
    "stop": types_pb2.FINISH_REASON_STOP,
    "length": types_pb2.FINISH_REASON_LENGTH,
    "cancelled": types_pb2.FINISH_REASON_CANCELLED,
}


@dataclass
class Output:
    """Tokens with the log-probability and the weights version of each, and the alternatives where asked for."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[types_pb2.TopLogprobs] = field(default_factory=list)
    spans: list[types_pb2.VersionSpan] = field(default_factory=list)
    finish: types_pb2.FinishReason.ValueType = types_pb2.FINISH_REASON_UNSPECIFIED

    @property
    def version(self) -> str:
        """That of the first token; empty before it."""
        return self.spans[0].version if self.spans else ""

    def add(self, tokens: list[int], logprobs: list[float], version: str) -> None:
        begin = len(self.tokens)
        self.tokens.extend(tokens)
        self.logprobs.extend(logprobs)
        if self.spans and self.spans[-1].version == version:
            self.spans[-1].end = len(self.tokens)
        elif tokens:
            self.spans.append(types_pb2.VersionSpan(version=version, begin=begin, end=len(self.tokens)))

    def end(self, answer: dict[str, Any]) -> None:
        """The host's last word; its spans are exact where a portion mixed two versions."""
        self.finish = _FINISH.get(str(answer["finished"]), types_pb2.FINISH_REASON_UNSPECIFIED)
        spans = [types_pb2.VersionSpan(version=v, begin=b, end=e) for v, b, e in answer.get("version_spans") or ()]
        self.spans = spans or self.spans


@dataclass(frozen=True)
class Portion:
    tokens: list[int]
    logprobs: list[float]
    top_logprobs: list[types_pb2.TopLogprobs] = field(default_factory=list)  # one for each token, or none


async def generate(
    host: ModelHost, model: str, request: dict[str, Any], output: Output, deadline: Deadline
) -> AsyncGenerator[Portion, None]:
    """Runs a `generate` request, keeps `output` up to date, and measures. Closing it cancels in the model.

    Raises HostError, and RpcError when the deadline has passed.
    """
    meter = _Meter(model, len(request["prompt"]))
    try:
        async with aclosing(host.stream(model, {"op": "generate", **request}, timeout=deadline.remaining())) as answers:  # type: ignore[type-var]
            async for answer in answers:
                tokens: list[int] = np.asarray(answer.get("tokens", ()), np.int32).tolist()
                if tokens:
                    logprobs: list[float] = np.asarray(answer["logprobs"], np.float32).tolist()
                    top_logprobs = [_alternatives(pairs) for pairs in answer.get("top", ())]
                    output.add(tokens, logprobs, str(answer["version"]))
                    output.top_logprobs.extend(top_logprobs)
                    meter.tokens(len(tokens))
                    yield Portion(tokens, logprobs, top_logprobs)
                if "finished" in answer:
                    output.end(answer)
        if output.finish == types_pb2.FINISH_REASON_UNSPECIFIED:
            raise HostError("INTERNAL", "the model ended its stream without saying why")
    finally:
        meter.end(output)


def carried() -> dict[str, str]:
    """What a model's request carries so that its engine joins the trace."""
    parent = context.traceparent()
    return {context.TRACEPARENT: parent} if parent else {}


def _alternatives(pairs: Sequence[tuple[int, float]]) -> types_pb2.TopLogprobs:
    return types_pb2.TopLogprobs(token_ids=[int(token) for token, _ in pairs], logprobs=[value for _, value in pairs])


class _Meter:
    """The metrics of one request: waiting until its first token, running after it."""

    def __init__(self, model: str, prompt_tokens: int) -> None:
        self._model = model
        self._began = self._last = time.monotonic()
        self._running = False
        self._latency = metrics.INTER_TOKEN_LATENCY.labels(model)
        self._tokens = metrics.GENERATION_TOKENS.labels(model)
        metrics.PROMPT_TOKENS.labels(model).inc(prompt_tokens)
        metrics.NUM_REQUESTS_WAITING.labels(model).inc()

    def tokens(self, count: int) -> None:
        now = time.monotonic()
        if self._running:
            each = (now - self._last) / count  # a portion of several is spread evenly: a mean, not a burst
            for _ in range(count):
                self._latency.observe(each)
        else:
            self._running = True
            metrics.NUM_REQUESTS_WAITING.labels(self._model).dec()
            metrics.NUM_REQUESTS_RUNNING.labels(self._model).inc()
            metrics.TIME_TO_FIRST_TOKEN.labels(self._model).observe(now - self._began)
        self._last = now
        self._tokens.inc(count)

    def end(self, output: Output) -> None:
        gauge = metrics.NUM_REQUESTS_RUNNING if self._running else metrics.NUM_REQUESTS_WAITING
        gauge.labels(self._model).dec()
        if output.finish in (types_pb2.FINISH_REASON_STOP, types_pb2.FINISH_REASON_LENGTH):
            reason = types_pb2.FinishReason.Name(output.finish).removeprefix("FINISH_REASON_").lower()
            metrics.E2E_REQUEST_LATENCY.labels(self._model).observe(time.monotonic() - self._began)
            metrics.REQUEST_SUCCESS.labels(self._model, reason).inc()
