"""How evenly decode steps follow each other: what a load or a switch of weights costs the streams that run."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from statistics import median

_REMEMBERED = 256  # gaps that "usual" is the median of


class GapWindow:
    """The gaps between two moments. `longest` is in seconds; 0 while no two steps followed each other."""

    def __init__(self, usual: float) -> None:
        self.usual = usual  # the median gap before the window, in seconds
        self.longest = 0.0
        self._done: Callable[[], bool] | None = None
        self._closed = threading.Event()

    def close_when(self, done: Callable[[], bool]) -> None:
        """Call it on the engine's thread, where `done` is asked after every step: the first that makes it true is the
        last one that counts."""
        self._done = done

    def wait_closed(self, timeout: float) -> None:
        self._closed.wait(timeout)

    def add(self, gap: float) -> bool:
        """False when the window is closed."""
        self.longest = max(self.longest, gap)
        if self._done is None or not self._done():
            return True
        self._closed.set()
        return False


class StepGaps:
    """Fed by the engine's thread after every step, read through windows by others. Times are of one monotonic clock."""

    def __init__(self) -> None:
        self._last: float | None = None
        self._aside = 0.0  # since then
        self._recent: deque[float] = deque(maxlen=_REMEMBERED)
        self._windows: list[GapWindow] = []
        self._lock = threading.Lock()

    def step(self, now: float, goes_on: bool, aside: float = 0.0, *, decoded: bool = True) -> None:
        """A step ended at `now`. `goes_on`: another follows at once; otherwise what comes next is no gap but a rest.

        `aside` seconds of the gap went into the prompts of new requests: they have a bound of their own, and come
        whether or not weights change. A step that only read (not `decoded`) ends no gap: answers that are read anew
        wait for one that decodes.
        """
        self._aside += aside
        gap = 0.0
        with self._lock:
            if decoded and self._last is not None:
                gap = now - self._last - self._aside
                self._recent.append(gap)
            self._windows = [window for window in self._windows if window.add(gap)]
        if decoded or not goes_on:
            self._last, self._aside = (now if goes_on else None), 0.0

    def open(self) -> GapWindow:
        with self._lock:
            window = GapWindow(median(self._recent) if self._recent else 0.0)
            self._windows.append(window)
        return window

    def close(self, window: GapWindow) -> None:
        with self._lock:
            if window in self._windows:
                self._windows.remove(window)
