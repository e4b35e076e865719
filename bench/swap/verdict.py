"""From answers and swaps to a verdict: dropped, garbled, and how long decode steps paused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from bench.serving.stats import percentile

STEPS_ALLOWED = 2  # of the target: a gap takes no longer than these and one copy of the weights


@dataclass
class Reply:
    """A streamed answer as its client saw it; `arrivals` in seconds of one clock."""

    prompt: int  # which of the run's prompts
    tokens: list[int] = field(default_factory=list)
    spans: list[tuple[str, int, int]] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    finished: bool = False
    error: str = ""


@dataclass(frozen=True)
class Swap:
    """One change of weights. Seconds; `began` and `ended` on the clock of the replies."""

    began: float
    ended: float
    load: float
    switch: float
    longest_gap: float  # between the ends of two steps, load and switch together
    usual_gap: float  # the median before
    quiet_gap: float | None = None  # the longest in a time as long without a swap, where that is known


@dataclass(frozen=True)
class Deviation:
    """An answer that is not, token by token, what its version gives alone."""

    version: str
    prompt: int
    found: list[int]
    mixed: bool = False  # another version has a part in it


def dropped(replies: Sequence[Reply]) -> list[Reply]:
    """Those that did not end by themselves, or whose tokens and spans do not cover each other."""
    return [reply for reply in replies if reply.error or not reply.finished or not _covered(reply)]


def deviations(replies: Sequence[Reply], own: Mapping[str, Sequence[Sequence[int]]]) -> list[Deviation]:
    """The answers of a `finish` run that are not, token by token, what one version gives alone.

    `own[version][prompt]` is that version's greedy answer.
    """
    found = []
    for reply in replies:
        if not reply.spans:
            continue
        version = reply.spans[0][0]
        mixed = len(reply.spans) > 1
        if mixed or reply.tokens != list(own[version][reply.prompt]):
            found.append(Deviation(version, reply.prompt, reply.tokens, mixed))
    return found


def stalls(swaps: Sequence[Swap], copy_seconds: float) -> dict[str, Any]:
    """Percentiles in milliseconds and in decode steps, beside the target, which the whole gap is judged by."""
    longest = [swap.longest_gap for swap in swaps]
    beyond = [swap.longest_gap - swap.usual_gap for swap in swaps]
    usual = median(swap.usual_gap for swap in swaps)
    allowed = STEPS_ALLOWED * usual + copy_seconds
    worst = percentile(longest, 0.99)
    quiet = [swap.quiet_gap for swap in swaps if swap.quiet_gap is not None]
    return {
        "step_ms": usual * 1e3,
        "gap_p50_ms": percentile(longest, 0.5) * 1e3,
        "gap_p99_ms": worst * 1e3,
        "gap_max_ms": max(longest) * 1e3,
        "stall_p50_ms": percentile(beyond, 0.5) * 1e3,
        "stall_p99_ms": percentile(beyond, 0.99) * 1e3,
        "stall_max_ms": max(beyond) * 1e3,
        "quiet_p99_ms": percentile(quiet, 0.99) * 1e3 if quiet else None,
        "gap_p99_steps": worst / usual if usual else None,
        "allowed_ms": allowed * 1e3,
        "met": worst <= allowed,
        "load_p50_ms": percentile([swap.load for swap in swaps], 0.5) * 1e3,
        "switch_p99_ms": percentile([swap.switch for swap in swaps], 0.99) * 1e3,
    }


def client_gaps(replies: Sequence[Reply], swaps: Sequence[Swap]) -> dict[str, float]:
    """The 99th percentile, over swaps, of the longest silence that any client heard while one was under way, and in a
    time as long just before it: what streams, prompts and the machine do to each other without a swap."""
    gaps = [pair for reply in replies for pair in pairwise(reply.arrivals)]

    def worst(windows: Sequence[tuple[float, float]]) -> float:
        longest = [
            max((later - earlier for earlier, later in gaps if later > began and earlier < ended), default=0.0)
            for began, ended in windows
        ]
        return percentile(longest, 0.99) * 1e3

    return {
        "client_gap_p99_ms": worst([(swap.began, swap.ended) for swap in swaps]),
        "client_gap_before_p99_ms": worst([(2 * swap.began - swap.ended, swap.began) for swap in swaps]),
    }


def _covered(reply: Reply) -> bool:
    at = 0
    for _, begin, end in reply.spans:
        if begin != at or end <= begin:
            return False
        at = end
    return at == len(reply.tokens) > 0
