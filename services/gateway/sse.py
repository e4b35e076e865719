"""Server-sent events: OpenAI's stream chunks, and a response that notices when its client has gone."""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from protos.anyloop.v1 import policy_pb2, types_pb2
from services.gateway.answers import Answer, finished
from services.gateway.chat import ChatRenderer, by_kind, usage
from services.gateway.errors import GatewayError, Status
from services.gateway.observer import broke_off

logger = logging.getLogger(__name__)
DONE = b"data: [DONE]\n\n"
Events = AsyncGenerator[tuple[int, policy_pb2.GenerateResponse], None]


def encode(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class ChatChunks:
    """The chunks of one streamed completion. `responses` are the ids of the choices, known before they begin."""

    def __init__(self, renderer: ChatRenderer, responses: list[str], include_usage: bool) -> None:
        self._renderer, self._include_usage = renderer, include_usage
        self._answers = [Answer(response_id) for response_id in responses]
        self._created = int(time.time())
        self._around: dict[int, tuple[bytes, bytes]] = {}  # what stands before and behind the text of a choice's chunks

    async def encoded(self, events: Events) -> AsyncGenerator[bytes, None]:
        """SSE lines up to `[DONE]`. Once the stream has begun, an error can only be a chunk of its own."""
        try:
            async for index, event in events:
                answer = self._answers[index]
                answer.add(event)
                if event.WhichOneof("event") == "text" and self._renderer.names is None:
                    yield self._text(index, answer, event.text.text)
                    continue
                chunk = await self._chunk(index, answer, event)
                if chunk is not None:
                    yield encode(chunk)
            for answer in self._answers:
                finished(answer)
            last = b""
            if self._include_usage:
                last = encode({**self._head(self._answers[0]), "choices": [], "usage": usage(self._answers)})
        except GatewayError as error:
            broke_off(error.http_status)
            last = encode(error.body)
        except Exception:
            broke_off(500)
            logger.exception("a stream failed", extra={"response_id": self._answers[0].response_id})
            last = encode(
                GatewayError(Status.INTERNAL, "the gateway failed on this request; try again", "internal").body
            )
        yield last + DONE

    def _text(self, index: int, answer: Answer, text: str) -> bytes:
        """A chunk of text alone: all but the text is the same each time."""
        around = self._around.get(index)
        if around is None:
            empty = encode(self._whole(index, answer, {"content": ""}, None))
            before, mark, behind = empty.partition(b'"content":"')  # a quotation mark within a string is escaped
            around = self._around[index] = (before + mark[:-1], behind[1:])
        return around[0] + json.dumps(text, ensure_ascii=False).encode() + around[1]

    async def _chunk(self, index: int, answer: Answer, event: policy_pb2.GenerateResponse) -> dict[str, Any] | None:
        kind = event.WhichOneof("event")
        logprobs = None
        if kind == "started":
            delta: dict[str, Any] = {"role": "assistant", "content": ""}
        elif kind == "text":
            delta = {"content": event.text.text}
            logprobs = self._renderer.logprobs(event.text)
        elif kind == "media":
            delta = await self._media_delta(event.media.media)
        elif kind == "finished":
            delta = {}
        else:
            return None
        return self._whole(index, answer, delta, logprobs)

    def _whole(self, index: int, answer: Answer, delta: dict[str, Any], logprobs: Any) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
            "response_id": answer.response_id,
        }
        chunk = {**self._head(answer), "choices": [choice]}
        return {**chunk, "usage": None} if self._include_usage else chunk

    async def _media_delta(self, ref: types_pb2.MediaRef) -> dict[str, Any]:
        part = await self._renderer.part(types_pb2.ContentPart(media=ref))
        delta: dict[str, Any] = {"content_parts": [part], **by_kind([part])}
        if ref.modality == types_pb2.MODALITY_AUDIO and self._renderer.wants_audio:
            delta["audio"] = await self._renderer.audio(ref)
        return delta

    def _head(self, answer: Answer) -> dict[str, Any]:
        return {
            "id": self._answers[0].response_id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._renderer.model,
            "system_fingerprint": answer.version,
        }


async def begin(events: Events) -> Events:
    """The same events, once the first is there: what fails before it still gets its own HTTP status."""
    try:
        first = await anext(events)
    except StopAsyncIteration as error:
        raise GatewayError(Status.INTERNAL, "the policy service gave no answer; try again", "internal") from error

    async def again() -> Events:
        yield first
        async for item in events:
            yield item

    return again()


class EventStream(Response):
    """Streams `lines`; at the end, or when the client disconnects, closes `source`: that cancels what is behind it."""

    media_type = "text/event-stream"

    def __init__(self, lines: AsyncGenerator[bytes, None], source: Events) -> None:
        self._lines, self._source = lines, source
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        watcher = asyncio.create_task(self._watch(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                sender.result()
        finally:
            for task in (sender, watcher):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, OSError):
                    await task
            await self._lines.aclose()
            await self._source.aclose()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for line in self._lines:
            await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
