"""One answer, put together from the events of its stream."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from protos.anyloop.v1 import policy_pb2, types_pb2
from services.gateway.errors import GatewayError, Status, unavailable

FINISH = {types_pb2.FINISH_REASON_STOP: "stop", types_pb2.FINISH_REASON_LENGTH: "length"}


@dataclass
class Answer:
    """`token_ids`, `logprobs` and `top_logprobs` (where asked for) are those of the text.

    `parts` are text and media in the order they came.
    """

    response_id: str
    version: str = ""
    parts: list[types_pb2.ContentPart] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[types_pb2.TopLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts if part.WhichOneof("part") == "text")

    @property
    def media(self) -> list[types_pb2.MediaRef]:
        return [part.media for part in self.parts if part.WhichOneof("part") == "media"]

    def add(self, event: policy_pb2.GenerateResponse) -> None:
        """Raises GatewayError when the policy service ended the answer before its end."""
        kind = event.WhichOneof("event")
        if kind == "started":
            self.version = event.started.policy_version
            self.prompt_tokens = event.started.prompt_tokens
        elif kind == "text":
            if self.parts and self.parts[-1].WhichOneof("part") == "text":
                self.parts[-1].text += event.text.text
            else:
                self.parts.append(types_pb2.ContentPart(text=event.text.text))
            self.token_ids.extend(event.text.token_ids)
            self.logprobs.extend(event.text.logprobs)
            self.top_logprobs.extend(event.text.top_logprobs)
        elif kind == "media":
            self.parts.append(types_pb2.ContentPart(media=event.media.media))
        elif kind == "finished":
            self.finish_reason = FINISH.get(event.finished.finish_reason)
            if self.finish_reason is None:
                raise unavailable("the answer was cancelled before its end; try again")
            self.prompt_tokens = event.finished.usage.prompt_tokens or self.prompt_tokens
            self.completion_tokens = event.finished.usage.completion_tokens


async def collect(response_id: str, events: AsyncIterator[policy_pb2.GenerateResponse]) -> Answer:
    """The whole answer. Raises GatewayError."""
    answer = Answer(response_id)
    async for event in events:
        answer.add(event)
    return finished(answer)


def finished(answer: Answer) -> Answer:
    """`answer`, or GatewayError when its stream ended without saying so."""
    if answer.finish_reason is None:
        raise GatewayError(Status.INTERNAL, "the policy service ended the answer early; try again", "internal")
    return answer
