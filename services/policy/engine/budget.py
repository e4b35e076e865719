"""How many prompt tokens one step may read, so that running answers never wait longer than a set time."""

from __future__ import annotations

LEAST = 16  # per step: a prompt gets on, however slow the machine
MOST = 256  # per step, when nobody waits: more than what the caches of a core hold is read slower per token
_FIRST = 128  # before anything was measured
_MEMORY = 0.8  # weight of the past in the running mean


class ReadBudget:
    """Learns how fast prompts are read. `seconds` is the time that one step may give to them."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._per_token: float | None = None

    def tokens(self, *, somebody_waits: bool) -> int:
        """`somebody_waits`: answers are running, and each of them stands still meanwhile."""
        if not somebody_waits:
            return MOST
        if self._per_token is None:
            return _FIRST
        return max(LEAST, min(MOST, int(self._seconds / self._per_token)))

    def observe(self, tokens: int, seconds: float) -> None:
        """`tokens` were read in `seconds`. Tiny pieces say little about the rate and count for little."""
        if tokens < 1:
            return
        found = seconds / tokens
        if self._per_token is None:
            self._per_token = found
            return
        past = _MEMORY ** min(1.0, tokens / LEAST)
        self._per_token = past * self._per_token + (1 - past) * found
