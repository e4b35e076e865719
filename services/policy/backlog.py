"""What live requests have produced and not sent, and when it is due. Without a clock or a thread of its own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from services.policy.engine import End, Request
from services.policy.outlets import Last, Outlet, Portion

PORTIONS_PER_SECOND = 1000  # what the services, the gateway and its clients carry on one core beside the engine's


@dataclass(slots=True)
class Delivery:
    """What one outlet is to send now."""

    portions: list[Portion] = field(default_factory=list)
    lasts: list[Last] = field(default_factory=list)


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


class Backlog:
    """First tokens and ends are due at once. Between them an outlet waits for `interval_s` at most, and for less when
    few requests run: one alone gets every token as it is made, many get several in one message."""

    def __init__(self, interval_s: float) -> None:
        self._interval = interval_s
        self._live: dict[Request, _Live] = {}
        self._flowed: dict[Outlet, float] = {}  # when tokens of an outlet, other than first ones, last went out
        self._silent: set[Request] = set()  # the live ones that have sent nothing yet

    @property
    def silent(self) -> bool:
        """A live request has sent nothing yet: every step may bring its first token."""
        return bool(self._silent)

    def open(self, request: Request, outlet: Outlet) -> None:
        """From now on `request` is live; it ends with the first `End` that names it."""
        self._silent.add(request)  # first: `take`, on another thread, removes only what it finds live
        self._live[request] = _Live(request, outlet)

    def is_live(self, request: Request) -> bool:
        return request in self._live

    def live(self, outlet: Outlet) -> list[Request]:
        """The live requests that answer on `outlet`."""
        return [one.request for one in list(self._live.values()) if one.outlet is outlet]

    def take(self, ends: Iterable[End], now: float) -> tuple[dict[Outlet, Delivery], float | None]:
        """What is due at `now`, and in how many seconds more will be (None: when the engine has made more)."""
        due: dict[Outlet, Delivery] = {}
        for end in ends:
            ended = self._live.pop(end.request, None)
            if ended is not None:
                self._silent.discard(end.request)
                delivery = due.setdefault(ended.outlet, Delivery())
                delivery.portions.extend(ended.take())
                delivery.lasts.append(Last(end.request, _last_answer(end)))
        live = list(self._live.values())
        interval = min(self._interval, sum(one.sent > 0 for one in live) / PORTIONS_PER_SECOND)
        open_outlets = {one.outlet for one in live}
        self._flowed = {outlet: at for outlet, at in self._flowed.items() if outlet in open_outlets}
        flowing = {outlet for outlet in open_outlets if now - self._flowed.get(outlet, 0.0) >= interval}
        wait: float | None = None
        for one in live:
            if not one.ready:
                continue
            if one.sent and one.outlet not in flowing:
                left = self._flowed[one.outlet] + interval - now
                wait = left if wait is None else min(wait, left)
                continue
            if one.sent:
                self._flowed[one.outlet] = now
            self._silent.discard(one.request)
            due.setdefault(one.outlet, Delivery()).portions.extend(one.take())
        return due, wait


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
