"""Requests that wait for a slot: bounded, and in fair order."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from services.hosts.drain_rate import DrainRate
from services.hosts.interface import HostError

if TYPE_CHECKING:
    from services.policy.engine.request import Request

_GREED = 4  # a key may hold this many times the places that are still free


class FairQueue:
    """One request per key in turn; in the order they came within a key. An accepted request is never dropped.

    At most `limit` wait. A key is refused once it holds four times the places that are free, the dynamic threshold of
    Choudhury and Hahne (IEEE/ACM ToN 6(2), 1998): one key alone gets four fifths of the queue, two get four ninths
    each, and a newcomer finds room. Their prompts are bounded with them: none is longer than the engine takes.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._keys: OrderedDict[str, deque[Request]] = OrderedDict()  # the first one's turn is next
        self._size = 0
        self._rate = DrainRate(clock)

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[Request]:
        """Key by key, not in the order of admission."""
        return (request for waiting in self._keys.values() for request in waiting)

    def __contains__(self, request: object) -> bool:
        return any(request is each for each in self)

    def push(self, request: Request) -> None:
        """Raises HostError RESOURCE_EXHAUSTED, with an estimate of when to try again."""
        waiting = self._keys.get(request.key)
        held = len(waiting) if waiting is not None else 0
        if self._size >= self._limit:
            raise self._refusal(f"{self._limit} requests are waiting already")
        if held >= _GREED * (self._limit - self._size):
            raise self._refusal(f"{held} of your requests are waiting already, and the other places are for others")
        if not self._size:
            self._rate.begin()
        if waiting is None:
            waiting = self._keys[request.key] = deque()
        waiting.append(request)
        self._size += 1

    def pop(self) -> Request:
        """The next one; its key goes to the end of the line. Raises IndexError when nobody waits."""
        if not self._keys:
            raise IndexError("nobody waits")
        key, waiting = self._keys.popitem(last=False)
        request = waiting.popleft()
        if waiting:
            self._keys[key] = waiting
        self._left()
        return request

    def remove(self, request: Request) -> None:
        """Raises ValueError when it does not wait."""
        waiting = self._keys.get(request.key, deque())
        waiting.remove(request)
        if not waiting:
            del self._keys[request.key]
        self._left()

    def clear(self) -> None:
        self._keys.clear()
        self._size = 0

    def _left(self) -> None:
        self._size -= 1
        self._rate.leave()

    def _refusal(self, reason: str) -> HostError:
        seconds = self._rate.seconds_for(self._size)
        return HostError("RESOURCE_EXHAUSTED", f"{reason}: try again in {seconds:.0f} s", retry_after_s=seconds)
