"""The span of one answer as the gateway sees it, in the words of OpenTelemetry's conventions for generative AI."""

import json

import grpc
from google.protobuf.json_format import MessageToDict

from anyloop.telemetry import context, tracing
from protos.anyloop.v1 import policy_pb2, types_pb2

_CONTENT_CHARACTERS = 16_384


class AnswerSpan:
    """Around the call of the policy service. Costs nothing where nothing is traced."""

    def __init__(self, asked: policy_pb2.GenerateRequest) -> None:
        self.metadata = context.outgoing()  # what is sent along with the call
        self._span: tracing.Span | None = None
        if not tracing.on():
            return
        sampling = asked.sampling
        attributes: dict[str, tracing.Value] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "anyloop",
            "gen_ai.request.model": asked.policy_version or "policy",
            "gen_ai.conversation.id": asked.conversation_id,
            "gen_ai.response.id": asked.response_id,
        }
        for name in ("temperature", "top_p", "top_k", "max_tokens", "seed"):
            if sampling.HasField(name) and getattr(sampling, name) < 2**63:  # a seed may have 64 bits, OTLP has 63
                attributes[f"gen_ai.request.{name}"] = getattr(sampling, name)
        if asked.modalities:
            attributes["gen_ai.output.type"] = types_pb2.Modality.Name(asked.modalities[0])[len("MODALITY_") :].lower()
        if tracing.wants_content():
            attributes["gen_ai.input.messages"] = _content(asked.messages)
        self._span = tracing.start("chat policy", kind="client", attributes=attributes)
        ids = tuple(pair for pair in self.metadata if pair[0] != context.TRACEPARENT)
        self.metadata = (*ids, (context.TRACEPARENT, self._span.traceparent))

    def see(self, event: policy_pb2.GenerateResponse) -> None:
        if self._span is None:
            return
        kind = event.WhichOneof("event")
        if kind == "started":
            self._span.set({"gen_ai.response.model": event.started.policy_version})
            self._span.event("gen_ai.first_token")
        elif kind == "finished":
            done = event.finished
            reason = types_pb2.FinishReason.Name(done.finish_reason).removeprefix("FINISH_REASON_").lower()
            self._span.set(
                {
                    "gen_ai.usage.input_tokens": done.usage.prompt_tokens,
                    "gen_ai.usage.output_tokens": done.usage.completion_tokens,
                    "gen_ai.response.finish_reasons": [reason],
                }
            )
            if tracing.wants_content():
                self._span.set({"gen_ai.output.messages": _content([done.message])})

    def fail(self, error: grpc.aio.AioRpcError) -> None:
        if self._span is not None:
            self._span.set({"error.type": error.code().name})
            self._span.end(f"{error.code().name}: {error.details()}")

    def end(self) -> None:
        if self._span is not None:
            self._span.end()


def _content(messages: object) -> str:
    """What was said, media by reference alone."""
    said = [MessageToDict(one, preserving_proto_field_name=True) for one in messages]  # type: ignore[attr-defined]
    return json.dumps(said, ensure_ascii=False)[:_CONTENT_CHARACTERS]
