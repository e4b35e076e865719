"""Answers on their way out of the engine, off its thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from services.policy.engine import End, Request
from services.policy.outlets import Last, Outlet, Portion

log = logging.getLogger(__name__)

PORTIONS_PER_SECOND = 1000  # what services, gateway and clients carry beside the engine on the second core


@dataclass(slots=True)
class _Live:
    """A request that has not ended: where it answers, and how much of it is on its way."""

    request: Request
    outlet: Outlet
    sent: int = 0

    @property
    def ready(self) -> bool:
        return self.sent < len(self.request.output)

    def take(self) -> list[Portion]:
        """What is not sent yet, a portion for each version; it counts as sent."""
        end = len(self.request.output)
        portions = [
            Portion(self.request, max(first, self.sent), min(last, end), version)
            for version, first, last in list(self.request.spans)
            if max(first, self.sent) < min(last, end)
        ]
        self.sent = end
        return portions


class Sender:
    """Sends what live requests have produced since the last time.

    A first token and an end go out at once. Between them an outlet waits for `interval_s` at most, and for less when
    few requests run: a single stream gets every token as it is made, many get several in one message.
    `cancel` is called with requests whose answers could not be sent.
    """

    def __init__(self, name: str, interval_s: float, cancel: Callable[[list[Request]], None]) -> None:
        self._interval = interval_s
        self._cancel = cancel
        self._live: dict[Request, _Live] = {}
        self._delivered: dict[Outlet, float] = {}  # when the tokens of an outlet last went out
        self._steps: queue.SimpleQueue[list[End] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"{name}-sender", daemon=True)
        self._thread.start()

    def open(self, request: Request, outlet: Outlet) -> None:
        """From now on `request` is live; it ends with the first `End` that names it."""
        self._live[request] = _Live(request, outlet)

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
            wait = self._flush(ends, time.monotonic())

    def _flush(self, ends: Iterable[End], now: float) -> float | None:
        """Sends what is due at `now`; returns in how many seconds the next is, None when there is nothing."""
        live = list(self._live.values())
        interval = min(self._interval, sum(one.sent > 0 for one in live) / PORTIONS_PER_SECOND)
        portions: dict[Outlet, list[Portion]] = {}
        lasts: dict[Outlet, list[Last]] = {}
        for end in ends:
            ended = self._live.pop(end.request, None)
            if ended is not None:
                portions.setdefault(ended.outlet, []).extend(ended.take())
                lasts.setdefault(ended.outlet, []).append(Last(end.request, _last_answer(end)))
        wait: float | None = None
        outlets = {one.outlet for one in live}
        self._delivered = {outlet: at for outlet, at in self._delivered.items() if outlet in outlets}
        due = {outlet for outlet in outlets if now - self._delivered.get(outlet, 0.0) >= interval}
        for one in live:
            if not one.ready:
                continue
            if one.outlet in due or not one.sent:
                if one.sent:
                    self._delivered[one.outlet] = now
                portions.setdefault(one.outlet, []).extend(one.take())
            else:
                left = self._delivered[one.outlet] + interval - now
                wait = left if wait is None else min(wait, left)
        for outlet in portions.keys() | lasts.keys():
            self._deliver(outlet, portions.get(outlet, []), lasts.get(outlet, []))
        return wait

    def _deliver(self, outlet: Outlet, portions: list[Portion], lasts: list[Last]) -> None:
        try:
            outlet.deliver(portions, lasts)
        except Exception:  # one client's broken pipe is not the others' affair
            log.exception("answers could not be sent", extra={"portions": len(portions), "ends": len(lasts)})
            self._cancel([portion.request for portion in portions])


def _last_answer(end: End) -> dict[str, Any]:
    if end.error is not None:
        return end.error.to_payload()
    request = end.request
    return {
        "finished": end.finished,
        "version_spans": [list(span) for span in request.spans],
        "sampling": asdict(request.sampling),
        "stopped_by": request.stop.found if request.stop is not None else "",
    }
