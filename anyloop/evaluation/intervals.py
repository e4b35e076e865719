"""Confidence intervals. Pure; all at the level `confidence`, 0.95 unless told.

Shares get Wilson's score interval (JASA 22, 1927), which keeps within 0-1 and is honest for few trials. Where a prompt
was answered several times its answers resemble each other: then the interval counts as many answers as they are worth
(the design effect of cluster samples, Kish 1965). Means of anything else are bootstrapped.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 2000
FEWEST = 5  # members of a group that is drawn again: of fewer, a bootstrap makes intervals that are far too narrow


@dataclass(frozen=True)
class Estimate:
    """A value and its interval; all NaN when nothing was measured."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        """NaN is no JSON: what was not measured is null."""
        return dict(zip(("value", "low", "high"), map(_or_null, (self.value, self.low, self.high)), strict=True))

    @property
    def interval(self) -> list[float | None]:
        """[low, high] for JSON."""
        return [_or_null(self.low), _or_null(self.high)]


def _or_null(number: float) -> float | None:
    return None if math.isnan(number) else number


UNMEASURED = Estimate(math.nan, math.nan, math.nan)


def wilson(right: float, asked: float, confidence: float = CONFIDENCE) -> Estimate:
    """The share `right / asked` of independent trials; `asked` may be an effective, fractional number."""
    if asked <= 0:
        return UNMEASURED
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = right / asked
    centre = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    # The end at a share of 0 or 1 is exact; rounding must not move it inside.
    return Estimate(share, 0.0 if right == 0 else centre - half, 1.0 if right == asked else centre + half)


def clustered_share(counts: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> Estimate:
    """The share of right trials where `counts` holds (right, asked) of each prompt.

    One trial per prompt gives Wilson's interval as it is. Else the number of trials is divided by the design effect:
    the variance of the share as a ratio over prompts, relative to that of independent trials, at least 1. A share of 0
    or 1 tells nothing about it: then every prompt counts once.
    """
    counts = [one for one in counts if one[1]]
    right, asked = sum(one[0] for one in counts), sum(one[1] for one in counts)
    if not asked or all(one[1] == 1 for one in counts):
        return wilson(right, asked, confidence)
    prompts, share = len(counts), right / asked
    if right in (0, asked):
        return wilson(share * prompts, prompts, confidence)
    if prompts == 1:
        return wilson(share, 1, confidence)
    residuals = sum((r - share * a) ** 2 for r, a in counts)
    variance = prompts / (prompts - 1) * residuals / asked**2
    effect = max(1.0, variance / (share * (1 - share) / asked))
    return wilson(right / effect, asked / effect, confidence)


def binomial_interval(wins: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """The exact interval of a share (Clopper and Pearson, Biometrika 26, 1934)."""
    if not trials:
        return UNMEASURED
    tail = (1 - confidence) / 2
    low = 0.0 if wins == 0 else _solve(lambda p: 1 - _at_most(wins - 1, trials, p) - tail)
    high = 1.0 if wins == trials else _solve(lambda p: tail - _at_most(wins, trials, p))
    return Estimate(wins / trials, low, high)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact probability of a split at least as uneven when neither side is better; ties are left out."""
    trials = wins + losses
    return min(1.0, 2 * _at_most(min(wins, losses), trials, 0.5)) if trials else 1.0


def bootstrap(
    groups: Sequence[Sequence[float]],
    *,
    confidence: float = CONFIDENCE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """The mean over groups of the group's mean, each group's members drawn again with replacement; percentile interval.

    Where a group has fewer than FEWEST members it tells next to nothing of how they differ: no interval then. NaN when
    a group is empty.
    """
    if not groups or any(not len(group) for group in groups):
        return UNMEASURED
    members = [np.asarray(group, dtype=float) for group in groups]
    value = float(np.mean([group.mean() for group in members]))
    if any(len(group) < FEWEST for group in members):
        return Estimate(value, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    drawn = [group[rng.integers(len(group), size=(resamples, len(group)))].mean(axis=1) for group in members]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.mean(drawn, axis=0), [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _at_most(wins: int, trials: int, p: float) -> float:
    """P(X <= wins) of a binomial, by logarithms: thousands of trials do not overflow."""
    if p <= 0:
        return 1.0
    if p >= 1:
        return float(wins >= trials)
    whole = math.lgamma(trials + 1)
    return min(
        1.0,
        math.fsum(
            math.exp(
                whole
                - math.lgamma(k + 1)
                - math.lgamma(trials - k + 1)
                + k * math.log(p)
                + (trials - k) * math.log1p(-p)
            )
            for k in range(wins + 1)
        ),
    )


def _solve(rising: Callable[[float], float]) -> float:
    """Where a function that rises over 0-1 crosses zero, to 1e-12."""
    low, high = 0.0, 1.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
