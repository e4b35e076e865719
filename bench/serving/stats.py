"""From arrival times to the figures of the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Answer:
    """One answer as its client saw it. Times are seconds of one clock; `arrivals[i]` brought `counts[i]` tokens."""

    asked: float
    arrivals: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    text: str = ""
    error: str = ""

    @property
    def tokens(self) -> int:
        return sum(self.counts)

    @property
    def message_gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def token_gaps(self) -> list[float]:
        """Inter-token latencies: tokens that arrive together have gaps of 0 between them."""
        if not self.arrivals:
            return []
        gaps = [0.0] * (self.counts[0] - 1)
        for gap, count in zip(self.message_gaps, self.counts[1:], strict=True):
            gaps += [gap] + [0.0] * (count - 1)
        return gaps


@dataclass(frozen=True)
class Figures:
    """One point of the table. Times in seconds."""

    streams: int
    answers: int
    failed: int
    tokens: int
    shortest_answer: int  # tokens; less than asked for means that somebody stopped early
    seconds: float
    tokens_per_second: float
    ttft_p50: float
    ttft_p99: float
    itl_p50: float
    itl_p99: float
    message_gap_p50: float
    message_gap_p99: float
    tokens_per_message: float
    error: str = ""  # the first failure

    def to_json(self) -> dict[str, Any]:
        return {name: _finite(value) for name, value in asdict(self).items()}


def percentile(values: Sequence[float], share: float) -> float:
    """Linear interpolation between the two nearest ranks, as numpy's default; NaN for no values."""
    if not values:
        return math.nan
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def figures(answers: Sequence[Answer], streams: int) -> Figures:
    """Failed answers count as failed and give no latencies; tokens per second are of all tokens that came."""
    good = [answer for answer in answers if not answer.error and answer.arrivals]
    bad = [answer for answer in answers if answer.error or not answer.arrivals]
    tokens = sum(answer.tokens for answer in good)
    began = min((answer.asked for answer in answers), default=0.0)
    seconds = max((answer.arrivals[-1] for answer in good), default=began) - began
    first = [answer.arrivals[0] - answer.asked for answer in good]
    gaps = [gap for answer in good for gap in answer.token_gaps]
    message_gaps = [gap for answer in good for gap in answer.message_gaps]
    return Figures(
        streams=streams,
        answers=len(good),
        failed=len(bad),
        tokens=tokens,
        shortest_answer=min((answer.tokens for answer in good), default=0),
        seconds=seconds,
        tokens_per_second=tokens / seconds if seconds > 0 else math.nan,
        ttft_p50=percentile(first, 0.5),
        ttft_p99=percentile(first, 0.99),
        itl_p50=percentile(gaps, 0.5),
        itl_p99=percentile(gaps, 0.99),
        message_gap_p50=percentile(message_gaps, 0.5),
        message_gap_p99=percentile(message_gaps, 0.99),
        tokens_per_message=tokens / max(1, sum(len(answer.arrivals) for answer in good)),
        error=bad[0].error or "no token came" if bad else "",
    )


def apportion(characters: Sequence[int], total: int) -> list[int]:
    """Shares `total` tokens among messages by their characters; each share is whole and they sum to `total`.

    Exact where every token has the same number of characters, or where every message is one token.
    """
    if len(characters) == total:
        return [1] * total
    everything = sum(characters)
    shares, before, seen = [], 0, 0
    for count in characters:
        seen += count
        upto = round(total * seen / everything) if everything else 0
        shares.append(upto - before)
        before = upto
    return shares


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
