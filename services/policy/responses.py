"""Tokens to what a client sees, in order: text as soon as it is whole, media as soon as their span is closed."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from anyloop.sequence import Codes, SegmentStream, Sequencer
from protos.anyloop.v1 import policy_pb2, types_pb2
from services.policy.stop_text import StopText
from services.replica.generation import Portion

Decode = Callable[[Codes], Awaitable[types_pb2.MediaRef]]


class Answer:
    """Feed it portions of tokens; it gives the events to send. `message` is the answer so far.

    Without `decode`, media spans stay codes: they are passed over.
    """

    def __init__(self, sequencer: Sequencer, decode: Decode | None, stops: Sequence[str] = ()) -> None:
        self._layout = sequencer.layout
        self._stream = SegmentStream(sequencer)
        self._stop = StopText(stops)
        self._decode = decode
        self._tokens: list[int] = []  # text tokens that stand behind the text not yet sent
        self._logprobs: list[float] = []
        self._top: list[types_pb2.TopLogprobs] = []
        self._text = ""
        self.message = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT)

    async def feed(self, portion: Portion) -> AsyncIterator[policy_pb2.GenerateResponse]:
        for at, (token, logprob) in enumerate(zip(portion.tokens, portion.logprobs, strict=True)):
            if token < self._layout.text_tokens:
                self._tokens.append(token)
                self._logprobs.append(logprob)
                self._top.extend(portion.top_logprobs[at : at + 1])
            for segment in self._stream.feed([token]):
                if isinstance(segment, str):
                    self._text += self._stop.feed(segment)
                    continue
                self._text += self._stop.flush()
                for event in self._take_text():
                    yield event
                if self._decode is not None:
                    yield self._media(await self._decode(segment))
        for event in self._take_text():
            yield event

    def finish(self) -> list[policy_pb2.GenerateResponse]:
        """The text that was held back: the beginning of a character or of a stop string that did not come."""
        for segment in self._stream.finish():
            if isinstance(segment, str):
                self._text += self._stop.feed(segment)
        self._text += self._stop.flush()
        return self._take_text()

    def _take_text(self) -> list[policy_pb2.GenerateResponse]:
        if not self._text:
            return []
        text, self._text = self._text, ""
        tokens, self._tokens = self._tokens, []
        logprobs, self._logprobs = self._logprobs, []
        top, self._top = self._top, []
        if not self.message.parts or self.message.parts[-1].WhichOneof("part") != "text":
            self.message.parts.add(text="")
        self.message.parts[-1].text += text
        delta = policy_pb2.GenerateResponse.TextDelta(text=text, token_ids=tokens, logprobs=logprobs, top_logprobs=top)
        return [policy_pb2.GenerateResponse(text=delta)]

    def _media(self, media: types_pb2.MediaRef) -> policy_pb2.GenerateResponse:
        self.message.parts.add(media=media)
        part = policy_pb2.GenerateResponse.MediaPart(media=media, modality=media.modality)
        return policy_pb2.GenerateResponse(media=part)
