"""When to come back to a queue that is full: from how fast it has been draining."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SHORTEST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
_WINDOW = 64  # departures that the rate is taken from


class DrainRate:
    """Tell it when a busy time begins and when something leaves; it estimates how long what is there will take."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began: float | None = None
        self._left: deque[float] = deque(maxlen=_WINDOW)

    def begin(self) -> None:
        """Something came to an empty place: what left before says nothing about now."""
        self._left.clear()
        self._began = self._clock()

    def leave(self) -> None:
        self._left.append(self._clock())

    def seconds_for(self, count: int) -> float:
        """Seconds until `count` will have left, within [1, 60]; 1 while nothing has left yet."""
        if not self._left or self._began is None:
            return SHORTEST_SECONDS
        since = self._left[0] if len(self._left) == _WINDOW else self._began
        seconds = count * (self._clock() - since) / len(self._left)
        return min(max(seconds, SHORTEST_SECONDS), LONGEST_SECONDS)
