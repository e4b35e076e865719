"""Many streams to one Triton model over one gRPC stream: their answers come several to a message.

The other side is `services.policy.sessions`. Requests of one gRPC stream reach the model in order, so the request that
attaches and the first one in the session travel without a pause between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.hosts.interface import HostError
from services.hosts.triton_messages import host_error, is_final, message_to, payload_of, request_id_of

log = logging.getLogger(__name__)

# A model with a request in it cannot be unloaded: without streams, a session leaves after this long.
IDLE_SECONDS = 1.0
_ATTACHED = 0  # the id of the request that carries the messages; the others have the number of their stream


class TritonSession:
    """Runs `generate` requests of one model. When it has `ended`, open another one."""

    def __init__(self, client: InferenceServerClient, model: str) -> None:
        self._model = model
        self._name = uuid.uuid4().hex
        self._numbers = itertools.count(1)
        self._streams: dict[int, asyncio.Queue[dict[str, Any] | HostError]] = {}
        self._outbox: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._idle: asyncio.TimerHandle | None = None
        self.ended = False
        self._ask({"op": "attach"}, _ATTACHED)
        self._responses = client.stream_infer(self._requests())
        self._reader = asyncio.create_task(self._read())

    async def generate(self, request: dict[str, Any], timeout: float | None) -> AsyncGenerator[dict[str, Any], None]:  # noqa: ASYNC109
        """The answers to one request, as ModelHost.stream. Nothing that a slow reader does holds up the others."""
        number = next(self._numbers)
        # Not bounded: a stream holds at most what its request may produce.
        answers: asyncio.Queue[dict[str, Any] | HostError] = asyncio.Queue()
        self._streams[number] = answers
        self._stay()
        self._ask({**request, "stream": number}, number)
        late = HostError("DEADLINE_EXCEEDED", f"{self._model} did not answer within {timeout} s")
        loop = asyncio.get_running_loop()
        timer = loop.call_later(timeout, answers.put_nowait, late) if timeout is not None else None
        try:
            while True:
                answer = await answers.get()
                if isinstance(answer, HostError):
                    raise answer
                if "error" in answer:
                    raise HostError.from_payload(answer["error"])
                yield answer
                if "finished" in answer:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            if self._streams.pop(number, None) is not None and not self.ended:  # the model has not ended it
                self._ask({"op": "cancel", "stream": number}, number)
            self._leave_when_idle()

    async def close(self) -> None:
        """Ends what still runs with UNAVAILABLE."""
        self._end(HostError("UNAVAILABLE", "the model host is closed"))
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    def _ask(self, payload: dict[str, Any], number: int) -> None:
        self._outbox.put_nowait(message_to(self._model, {**payload, "session": self._name}, str(number)))

    async def _requests(self) -> AsyncIterator[dict[str, Any]]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _read(self) -> None:
        error = HostError("UNAVAILABLE", f"Triton ended the session with {self._model}: try again")
        try:
            async for result, refusal in self._responses:
                if refusal is not None:  # Triton names the request that it refused; its client drops the name
                    raise refusal
                number, payload = int(request_id_of(result)), payload_of(result) or {}
                if number != _ATTACHED:
                    self._acknowledged(number, payload)
                elif "error" in payload:
                    raise _lost(HostError.from_payload(payload["error"]))
                else:
                    self._distribute(payload)
                    if is_final(result):
                        break
        except (InferenceServerException, grpc.RpcError) as failure:
            error = host_error(failure, self._model, None)
        except HostError as failure:
            error = failure
        except Exception as failure:
            log.exception("a session with Triton failed", extra={"model": self._model})
            error = HostError("INTERNAL", f"the answers of {self._model} could not be read: {failure}")
        finally:
            self._end(error)

    def _acknowledged(self, number: int, payload: dict[str, Any]) -> None:
        """The request was taken, or refused before it reached the engine."""
        if "error" in payload and number in self._streams:
            self._streams.pop(number).put_nowait(HostError.from_payload(payload["error"]))

    def _distribute(self, payload: dict[str, Any]) -> None:
        """Hands every stream its part of a message; a stream that was left meanwhile has none."""
        begin = 0
        alternatives = payload.get("top")
        for index, number in enumerate(payload.get("streams", ())):
            end = begin + int(payload["counts"][index])
            answers = self._streams.get(number)
            if answers is not None:
                answer = {"tokens": payload["tokens"][begin:end], "logprobs": payload["logprobs"][begin:end]}
                answer["version"] = payload["versions"][index]
                if alternatives is not None and alternatives[index]:
                    answer["top"] = alternatives[index]
                answers.put_nowait(answer)
            begin = end
        for number, last in payload.get("ends", ()):
            answers = self._streams.pop(number, None)
            if answers is not None:
                answers.put_nowait(last)

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _leave_when_idle(self) -> None:
        self._stay()
        if not self._streams and not self.ended:
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._leave)

    def _leave(self) -> None:
        self._end(HostError("UNAVAILABLE", "the session was idle"))

    def _end(self, error: HostError) -> None:
        if self.ended:
            return
        self.ended = True
        self._stay()
        self._outbox.put_nowait(None)
        self._responses.cancel()
        streams, self._streams = self._streams, {}
        for answers in streams.values():
            answers.put_nowait(error)


def _lost(error: HostError) -> HostError:
    """The model's last word on a session as its streams should hear it: they have not cancelled it."""
    return HostError("UNAVAILABLE", error.message) if error.code == "CANCELLED" else error
