"""Rows in which prompts are read, and what they remember: a later prompt with the same beginning starts behind it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from services.policy.engine.checkpoint import WeightSet
from services.policy.engine.forward import RowCache

_LEAST = 8  # known tokens that are worth a copy
_WORTH_WAITING = 16  # tokens that another request is about to read


@dataclass(eq=False)
class Prefix:
    """One row: `tokens[:known]` have been read into it, under the weights of `uid`."""

    row: int
    tokens: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    known: int = 0
    uid: int = -1  # of the WeightSet; -1: nothing here may be shared
    users: int = 0  # requests that read into it, or are about to copy from it
    used: int = 0  # by the table's own clock


class PrefixTable:
    """Allots rows `[first, first + rows)` of the cache. The row unused for longest goes first."""

    def __init__(self, first: int, rows: int) -> None:
        self._prefixes = [Prefix(first + index) for index in range(rows)]
        self._clock = 0
        self._scrubs = False  # rows are cleared before they are read into
        self.reused_tokens = 0  # prompt tokens that were copied instead of computed

    @property
    def full(self) -> bool:
        """Every row is in use."""
        return all(prefix.users for prefix in self._prefixes)

    def begin(self, tokens: list[int], weights: WeightSet, cache: RowCache) -> Prefix | None:
        """A row for reading `tokens`, which holds the longest beginning known already (`known` says how much).

        None: all rows are busy, or another request is reading this very beginning now; ask again after a step.
        """
        wanted = np.asarray(tokens, dtype=np.int64)
        best, shared, coming = None, 0, 0
        for prefix in self._prefixes:
            if prefix.uid == weights.uid:
                common = _common(prefix.tokens, wanted)
                coming = max(coming, common)
                if min(common, prefix.known) > max(shared, _LEAST - 1):
                    best, shared = prefix, min(common, prefix.known)
        if coming >= shared + _WORTH_WAITING:
            return None
        if best is not None and shared == len(wanted):  # nothing is left to read: as many as like may copy it
            self.reused_tokens += shared
            best.users += 1
            self._touch(best)
            return best
        row = self._row_for(best, shared)
        if row is None:
            return None
        if best is not None and row is not best:
            cache.copy(best.row, row.row, shared)
            self._touch(best)
        if self._scrubs:
            cache.clear(row.row, shared)
        self.reused_tokens += shared
        return self._take(row, wanted, weights, shared)

    def _row_for(self, best: Prefix | None, shared: int) -> Prefix | None:
        """A row that may be overwritten behind `shared`, where `best` holds what is shared."""
        if best is not None and not best.users and shared == len(best.tokens):
            return best  # all that is there is wanted: nothing that others share is lost
        idle = [prefix for prefix in self._prefixes if not prefix.users and prefix is not best]
        if idle:
            return min(idle, key=lambda prefix: prefix.used)
        return best if best is not None and not best.users else None

    def release(self, prefix: Prefix) -> None:
        """One request less needs the row; what it knows stays."""
        prefix.users -= 1
        if not prefix.users:
            prefix.tokens = prefix.tokens[: prefix.known]

    def forget(self, prefix: Prefix) -> None:
        """What stands in the row was computed under two versions, or by a forward that failed."""
        prefix.uid, prefix.known = -1, 0

    def scrub(self, cache: RowCache) -> None:
        """Rows may hold NaN: the idle ones are cleared now, the others before they are read into again."""
        self._scrubs = True
        for prefix in self._prefixes:
            if not prefix.users:
                self.forget(prefix)
                cache.clear(prefix.row)

    def remember(self, tokens: list[int], weights: WeightSet, cache: RowCache, row: int) -> None:
        """Keeps a finished sequence that stands in cache row `row`, where its prompt's own row is still there."""
        whole = np.asarray(tokens, dtype=np.int64)
        for prefix in self._prefixes:
            if prefix.users or prefix.uid != weights.uid or not 0 < prefix.known < len(whole):
                continue
            if prefix.known == len(prefix.tokens) == _common(prefix.tokens, whole):
                cache.copy(row, prefix.row, len(whole))
                prefix.tokens, prefix.known = whole, len(whole)
                self._touch(prefix)
                return

    def _take(self, prefix: Prefix, tokens: np.ndarray, weights: WeightSet, known: int) -> Prefix:
        prefix.tokens, prefix.known, prefix.uid, prefix.users = tokens, known, weights.uid, 1
        self._touch(prefix)
        return prefix

    def _touch(self, prefix: Prefix) -> None:
        self._clock += 1
        prefix.used = self._clock


def _common(some: np.ndarray, other: np.ndarray) -> int:
    """Length of the common beginning."""
    length = min(len(some), len(other))
    differs = np.flatnonzero(some[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
