"""Answers on their way out of the engine, off its thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from services.hosts.interface import HostError
from services.policy.backlog import Backlog, Delivery
from services.policy.engine import End, Request
from services.policy.outlets import Outlet, Session

log = logging.getLogger(__name__)


class Sender:
    """Sends what live requests produce, when it is due: see `Backlog`.

    `cancel` is called with requests whose answers could not be sent.
    """

    def __init__(self, name: str, interval_s: float, cancel: Callable[[list[Request]], None]) -> None:
        self._backlog = Backlog(interval_s)
        self._cancel = cancel
        self._steps: queue.SimpleQueue[list[End] | None] = queue.SimpleQueue()
        self._will_look = False  # the thread wakes by itself when the next tokens are due
        self._thread = threading.Thread(target=self._run, name=f"{name}-sender", daemon=True)
        self._thread.start()

    def open(self, request: Request, outlet: Outlet) -> None:
        """From now on `request` is live; it ends with the first `End` that names it."""
        self._backlog.open(request, outlet)

    def is_live(self, request: Request) -> bool:
        return self._backlog.is_live(request)

    def step(self, ends: list[End]) -> None:
        """The engine made a step: tokens may have come, and `ends` have.

        A thread that wakes takes the interpreter from the engine, so it is left alone while it knows when to look.
        """
        if ends or self._backlog.silent or not self._will_look:
            self._steps.put(ends)

    def close(self) -> None:
        """Sends what is left and stops the thread."""
        self._steps.put(None)
        self._thread.join(10.0)

    def _run(self) -> None:
        wait: float | None = None
        while True:
            try:
                step = self._steps.get(timeout=wait)
            except queue.Empty:
                step = []
            if step is None:
                return
            ends = list(step)
            while not self._steps.empty():
                more = self._steps.get()
                if more is None:
                    self._steps.put(None)
                    break
                ends.extend(more)
            self._will_look = False
            for end in ends:
                _end_span(end)
            due, wait = self._backlog.take(ends, time.monotonic())
            self._will_look = wait is not None
            for outlet, delivery in due.items():
                self._deliver(outlet, delivery)

    def _deliver(self, outlet: Outlet, delivery: Delivery) -> None:
        try:
            outlet.deliver(delivery.portions, delivery.lasts)
        except Exception:  # one client's broken pipe is not the others' affair
            unheard = {"portions": len(delivery.portions), "ends": len(delivery.lasts)}
            log.exception("answers could not be sent", extra=unheard)
            self._cancel([portion.request for portion in delivery.portions])
            if isinstance(outlet, Session):
                self._end(outlet)

    def _end(self, session: Session) -> None:
        """Its client lacks tokens or ends: it hears so, rather than wait for them."""
        lost = HostError("UNAVAILABLE", "a message of the session could not be sent: attach again")
        self._cancel(self._backlog.live(session))
        try:
            session.close(lost.to_payload())
        except Exception:
            log.exception("a session could not be told that it has ended")


def _end_span(end: End) -> None:
    span, spans = end.request.span, end.request.spans
    if span is None:
        return
    span.set({"gen_ai.usage.output_tokens": len(end.request.output), "anyloop.versions": [one[0] for one in spans]})
    span.end(None if end.error is None else f"{end.error.code}: {end.error.message}")
