"""Answers on their way out of the engine, off its thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from services.hosts.program import Send
from services.policy.engine import End, Request

log = logging.getLogger(__name__)


class Sender:
    """Sends what live requests have produced since the last time: tokens that gathered meanwhile go out together.

    `cancel` is called with a request whose answer could not be sent.
    """

    def __init__(self, name: str, cancel: Callable[[Request], None]) -> None:
        self._cancel = cancel
        self._live: dict[Request, Send] = {}  # every request that has not ended
        self._sent: dict[Request, int] = {}
        self._steps: queue.SimpleQueue[list[End] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{name}-sender", daemon=True)
        self._thread.start()

    def open(self, request: Request, send: Send) -> None:
        """From now on `request` is live; it ends with the first `End` that names it."""
        self._sent[request] = 0
        self._live[request] = send

    def is_live(self, request: Request) -> bool:
        return request in self._live

    def step(self, ends: list[End]) -> None:
        """The engine made a step: tokens may have come, and `ends` have."""
        self._steps.put(ends)

    def close(self) -> None:
        """Sends what is left and stops the thread."""
        self._steps.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        while (step := self._steps.get()) is not None:
            ends = list(step)
            while not self._steps.empty():
                more = self._steps.get()
                if more is None:
                    self._steps.put(None)
                    break
                ends.extend(more)
            for request in list(self._live):
                self._guarded(request, lambda request=request: self._send_tokens(request))  # type: ignore[misc]
            for end in ends:
                self._guarded(end.request, lambda end=end: self._send_end(end))  # type: ignore[misc]

    def _guarded(self, request: Request, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # one client's broken pipe is not the others' affair
            log.exception("an answer could not be sent", extra={"request_id": request.request_id})
            self._cancel(request)

    def _send_tokens(self, request: Request) -> None:
        begin, end = self._sent[request], len(request.output)
        send = self._live[request]
        for version, first, last in list(request.spans):
            first, last = max(first, begin), min(last, end)
            if first < last:
                tokens, logprobs = request.output[first:last], request.logprobs[first:last]
                send({"tokens": tokens, "logprobs": logprobs, "version": version}, False)
        self._sent[request] = end

    def _send_end(self, end: End) -> None:
        request = end.request
        if request not in self._live:
            return
        if self._sent[request] < len(request.output):
            self._send_tokens(request)
        send = self._live.pop(request)
        del self._sent[request]
        if end.error is not None:
            send(end.error.to_payload(), True)
            return
        last: dict[str, Any] = {
            "finished": end.finished,
            "version_spans": [list(span) for span in request.spans],
            "sampling": asdict(request.sampling),
            "stopped_by": request.stop.found if request.stop is not None else "",
        }
        send(last, True)
