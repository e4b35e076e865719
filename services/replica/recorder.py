"""Events on their way to the log: accepted by this machine before the answer that they record is finished."""

import asyncio
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import grpc
from google.protobuf.message import Message

from anyloop.log import Event, EventTooLarge, LogError
from anyloop.log.spool import SpooledWriter
from anyloop.telemetry import tracing
from anyloop.telemetry.metrics import UNLOGGED_RESPONSES
from services.rpc.errors import RpcError

logger = logging.getLogger(__name__)

Unlogged = Literal["serve", "refuse"]

_SYSTEM = {"messaging.system": "anyloop", "messaging.operation.type": "publish"}
_THREADS = 4  # of its own: those that wait for a log that is away must not be in front of an answer's end
_SAY_SECONDS = 60.0
_RETRY_AFTER_MS = 5000


class Recorder:
    """The client waits for one local write, never for the log behind it.

    `unlogged` says what becomes of answers while the outbox takes nothing (the log was away for too long, the disk is
    full): `serve` them without a record, counted, or `refuse` them.
    """

    def __init__(self, spool: SpooledWriter, source: str, unlogged: Unlogged = "serve") -> None:
        self._spool, self._source, self._unlogged = spool, source, unlogged
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="record")
        self._saying = threading.Lock()
        self._said, self._unsaid = float("-inf"), 0

    def admit(self) -> None:
        """Raises RpcError (UNAVAILABLE) where an answer could not be recorded and must be: better now than at its
        end."""
        if self._unlogged == "refuse" and (reason := self._spool.refuses()):
            raise _refusal(reason)

    async def record(self, topic: str, message: Message, key: str, event_id: str) -> None:
        """In the outbox when it returns, or counted as not. Written, or counted, even when the caller is cancelled
        meanwhile.

        Raises RpcError where answers without a record are refused: UNAVAILABLE when the outbox takes nothing,
        FAILED_PRECONDITION when it will never take this one.
        """
        with tracing.span(
            f"publish {topic}", kind="producer", attributes={**_SYSTEM, "messaging.destination.name": topic}
        ):
            event = Event.wrap(message, key=key, source=self._source, id=event_id)
        putting = asyncio.get_running_loop().run_in_executor(self._threads, self._put, topic, event)
        try:
            error = await asyncio.shield(putting)
        except asyncio.CancelledError:
            if self._unlogged == "refuse":  # too late for that: the client left with what it has seen
                putting.add_done_callback(self._count_departed)
            raise
        if error is not None and self._unlogged == "refuse":
            raise _too_large(error) if isinstance(error, EventTooLarge) else _refusal(str(error)) from error

    def _put(self, topic: str, event: Event) -> LogError | None:
        """On a thread, which ends its work whoever still waits for it."""
        try:
            self._spool.put(topic, event)
        except LogError as error:
            if self._unlogged == "serve":
                self._count(error)
            return error
        return None

    def _count_departed(self, putting: asyncio.Future[LogError | None]) -> None:
        if not putting.cancelled() and putting.exception() is None and (error := putting.result()) is not None:
            self._count(error)

    def _count(self, error: LogError) -> None:
        UNLOGGED_RESPONSES.inc()
        with self._saying:
            self._unsaid += 1
            if time.monotonic() - self._said > _SAY_SECONDS:
                logger.error("%d answers were served without a record: %s", self._unsaid, error)
                self._said, self._unsaid = time.monotonic(), 0

    def close(self) -> None:
        self._threads.shutdown()


def _refusal(reason: str) -> RpcError:
    return RpcError(grpc.StatusCode.UNAVAILABLE, f"answers cannot be recorded now: {reason}", _RETRY_AFTER_MS)


def _too_large(error: EventTooLarge) -> RpcError:
    """Nothing that a repetition could mend."""
    return RpcError(
        grpc.StatusCode.FAILED_PRECONDITION,
        f"this answer with its prompt is too large for the log ({error}): shorten the conversation",
    )
