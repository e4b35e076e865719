"""Weights whose files are sound, but whose numbers overflow when they run: their answers end, and nobody else's do.

Infinity or NaN in one logit makes every log-probability of its row NaN, so one look at the log-probabilities, which
the step has anyway, finds them all (under a microsecond at 32 rows). What such weights wrote into a cache row stays
there: the next request's masked columns would multiply it by 0, and 0 times NaN is NaN. So rows are cleared from then.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

from services.policy.engine.forward import RowCache
from services.policy.engine.prefixes import PrefixTable
from services.policy.engine.request import Request

log = logging.getLogger(__name__)


class NotFinite(Exception):
    def __init__(self, version: str) -> None:
        super().__init__(f"{version} computes numbers that are not finite; activate another version")


def without_numbers(group: Sequence[Request], logprobs: Sequence[float]) -> list[Request]:
    """The requests of a step whose log-probability is NaN."""
    if not math.isnan(sum(logprobs)):
        return []
    return [request for request, logprob in zip(group, logprobs, strict=True) if math.isnan(logprob)]


class Scrubber:
    """Does nothing until the first version was found `broken`."""

    def __init__(self, prefixes: PrefixTable) -> None:
        self._prefixes = prefixes
        self._broken: set[str] = set()

    def broken(self, version: str, cache: RowCache, idle_rows: Iterable[int]) -> None:
        """Clears what nobody uses; what is in use is cleared when it is left, or before it is read into again."""
        if version not in self._broken:
            log.error("%s computes numbers that are not finite; its requests fail", version)
        if not self._broken:
            self._prefixes.scrub(cache)
            for row in idle_rows:
                cache.clear(row)
        self._broken.add(version)

    def left(self, cache: RowCache, row: int) -> None:
        if self._broken:
            cache.clear(row)
