"""What has to be looked at: each key once, however often it was named, and never by two workers at a time."""

import asyncio
import heapq
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class WorkQueue(Generic[K]):
    """`add` (with a delay, of which the soonest counts), `get`, then `done` or `retry`: each failure in a row doubles
    the wait, up to `longest` seconds. A key that is added while a worker has it comes again after `done`."""

    def __init__(
        self, clock: Callable[[], float] | None = None, first_wait: float = 0.5, longest: float = 60.0
    ) -> None:
        self._clock = clock or asyncio.get_running_loop().time
        self._first, self._longest = first_wait, longest
        self._due: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._taken: set[K] = set()
        self._failures: dict[K, int] = {}
        self._order = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    def add(self, key: K, after: float = 0.0) -> None:
        when = self._clock() + max(after, 0.0)
        if key in self._due and self._due[key] <= when:
            return
        self._due[key] = when
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, key))
        self._changed.set()

    async def get(self) -> K:
        """The key that has been due longest; waits for one."""
        while True:
            self._changed.clear()
            wait = self._until_next()
            if wait is not None and wait <= 0:
                _, _, key = heapq.heappop(self._heap)
                del self._due[key]
                self._taken.add(key)
                return key
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: K) -> None:
        """The look succeeded."""
        self._failures.pop(key, None)
        self._give_back(key)

    def retry(self, key: K) -> float:
        """The look failed: it comes again after the seconds returned."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait = min(self._first * 2**failures, self._longest)
        self._give_back(key)
        self.add(key, wait)
        return wait

    def _give_back(self, key: K) -> None:
        self._taken.discard(key)
        if key in self._due:  # named again meanwhile: its heap entry was passed over
            self._order += 1
            heapq.heappush(self._heap, (self._due[key], self._order, key))
        self._changed.set()

    def _until_next(self) -> float | None:
        """Seconds until the first free key is due; None when there is none."""
        while self._heap:
            when, _, key = self._heap[0]
            if self._due.get(key) != when or key in self._taken:
                heapq.heappop(self._heap)
                continue
            return when - self._clock()
        return None
