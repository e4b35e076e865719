"""Paired bootstrap over prompts: how sure is the gain of one version over another on the same prompts. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float


def paired_gain(
    subtasks: Sequence[str],
    before: Sequence[float],
    after: Sequence[float],
    *,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> Interval:
    """The mean over subtasks of the mean gain per prompt, with a percentile interval.

    `before[i]` and `after[i]` are success rates of prompt `i`. Prompts are drawn again within each subtask, so that
    every subtask weighs the same in every resample. Raises ValueError on no prompts or unequal lengths.
    """
    if not subtasks or not len(subtasks) == len(before) == len(after):
        raise ValueError("as many successes as prompts are needed, and at least one")
    gains = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    rng = np.random.default_rng(seed)
    draws = np.zeros(resamples)
    mean = 0.0
    names = sorted(set(subtasks))
    for name in names:
        own = gains[[i for i, subtask in enumerate(subtasks) if subtask == name]]
        mean += float(own.mean()) / len(names)
        draws += own[rng.integers(len(own), size=(resamples, len(own)))].mean(axis=1) / len(names)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


def mean_by_subtask(subtasks: Sequence[str], successes: Sequence[float]) -> dict[str, float]:
    """Mean success of each subtask."""
    groups: dict[str, list[float]] = {}
    for subtask, success in zip(subtasks, successes, strict=True):
        groups.setdefault(subtask, []).append(success)
    return {subtask: sum(found) / len(found) for subtask, found in sorted(groups.items())}
