"""How sure a gain is, over seeds and held-out prompts: 95 % intervals. Pure.

A seed is one replication of everything: prompts, answers, annotations, training, held-out prompts. Methods of one seed
answer the same held-out prompts, so their differences are paired by seed and by prompt.

- Two to seven seeds: Student's t over the seeds' means. It holds the randomness of training and of the prompts alike,
  and pays for few seeds with width (three seeds: 2.5 standard deviations to each side, where a bootstrap of the three
  would be 2.7 times too narrow). Seeds may agree by chance, so it is never narrower than the prompts alone make it:
  1.96 standard errors of the mean over prompts. For a ratio: Fieller's interval (1954), from both in the same way.
  Of a single subtask few seeds tell next to nothing about its own spread, so what training adds to the spread that the
  prompts explain is pooled over the subtasks, as in an analysis of variance: (seeds - 1) x subtasks degrees of freedom.
- Eight seeds or more: percentiles of a bootstrap of the seeds, then of the prompts in each.
- One seed: percentiles of a bootstrap of the prompts. That says nothing about other trainings, and `over` says so.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
MANY_SEEDS = 8
DRAWS = 2000
_TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)

Values = Mapping[str, np.ndarray]  # of one seed, by subtask: [prompts]
Bounds = tuple[float | None, float | None]


@dataclass(frozen=True)
class Estimate:
    """`low` and `high` are None where the data bound a ratio by nothing."""

    mean: float
    low: float | None
    high: float | None
    over: str  # what was drawn at random: "seeds" (t), "seeds and prompts" (bootstrap), "prompts" (of one seed)
    seeds: tuple[float, ...] = ()  # the same for each seed

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "seeds": list(self.seeds)}


def estimates(seeds: Sequence[Values], groups: Mapping[str, Sequence[str]]) -> dict[str, Estimate]:
    """Of each group of subtasks the mean of its subtasks' means. `seeds`: paired differences, or outcomes."""
    names = list(seeds[0])
    arrays = [{name: values[name][:, None] for name in names} for values in seeds]
    drawn = _resampled(arrays) if _bootstraps(len(seeds)) else None
    added = _added_by_training(arrays) if drawn is None else 0.0
    found = {}
    for group, members in groups.items():
        at = [names.index(name) for name in members]
        each = tuple(float(np.mean([values[name].mean() for name in members])) for values in seeds)
        middle = float(np.mean(each))
        if drawn is not None:
            low, high = map(float, np.quantile(drawn[:, at, 0].mean(axis=1), _TAILS))
        else:
            by_prompts = _covariance_by_prompts(arrays, members)[0, 0]
            if len(members) == 1 < len(names):
                half = _t(len(names) * (len(seeds) - 1)) * math.sqrt(added / len(seeds) + by_prompts)
            else:
                between = _t(len(seeds) - 1) * float(np.std(each, ddof=1)) / math.sqrt(len(seeds))
                half = max(between, _z() * math.sqrt(by_prompts))
            low, high = middle - half, middle + half
        found[group] = Estimate(middle, low, high, _over(len(seeds)), each)
    return found


def estimate(seeds: Sequence[Values]) -> Estimate:
    """Of all subtasks together."""
    return estimates(seeds, {"mean": list(seeds[0])})["mean"]


def ratio(above: Sequence[Values], below: Sequence[Values]) -> Estimate | None:
    """Mean of `above` over mean of `below`, paired by seed and prompt; None where the lower mean is not positive: a
    ratio says nothing then. Without bounds where the data do not tell the lower mean from 0."""
    names = list(above[0])
    both = [
        {name: np.stack([top[name], bottom[name]], axis=-1) for name in names}
        for top, bottom in zip(above, below, strict=True)
    ]
    each = np.array([np.mean([values[name].mean(axis=0) for name in names], axis=0) for values in both])
    top, bottom = map(float, each.mean(axis=0))
    if bottom <= 0:
        return None
    if _bootstraps(len(both)):
        bounds = _quantiles_of_ratio(_resampled(both).mean(axis=1))
    else:
        between = np.cov(each.T, ddof=1) / len(both)
        bounds = _wider(
            fieller(top, bottom, between, _t(len(both) - 1)),
            fieller(top, bottom, _covariance_by_prompts(both, names), _z()),
        )
    by_seed = tuple(float(one / other) for one, other in each) if (each[:, 1] > 0).all() else ()
    return Estimate(top / bottom, *bounds, _over(len(both)), by_seed)


def fieller(above: float, below: float, covariance: np.ndarray, quantile: float) -> Bounds:
    """Bounds of the ratio of two means whose errors have this covariance [2, 2]; none unless `below` is told from 0."""
    square = quantile**2
    scale = below**2 - square * covariance[1, 1]
    if scale <= 0:
        return None, None
    middle = above * below - square * covariance[0, 1]
    root = math.sqrt(max(0.0, middle**2 - scale * (above**2 - square * covariance[0, 0])))
    return float((middle - root) / scale), float((middle + root) / scale)


def _quantiles_of_ratio(drawn: np.ndarray) -> Bounds:
    """`drawn` [draws, 2]. None where the lower one is 0 or less more often than a tail allows."""
    if np.mean(drawn[:, 1] <= 0) > _TAILS[0]:
        return None, None
    low, high = np.quantile(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-9), _TAILS)
    return float(low), float(high)


def _wider(one: Bounds, other: Bounds) -> Bounds:
    (low, high), (lower, higher) = one, other
    if low is None or high is None or lower is None or higher is None:
        return None, None
    return min(low, lower), max(high, higher)


def _covariance_by_prompts(seeds: Sequence[Values], names: Sequence[str]) -> np.ndarray:
    """[quantities, quantities]: of the errors of the mean over seeds and subtasks, were the same models asked other
    prompts. `seeds`: arrays [prompts, quantities]."""
    quantities = seeds[0][names[0]].shape[1]
    total = np.zeros((quantities, quantities))
    for values in seeds:
        for name in names:
            count = len(values[name])
            if count > 1:
                total += np.cov(values[name].T, ddof=1).reshape(quantities, quantities) / count
    return total / (len(seeds) * len(names)) ** 2


def _added_by_training(seeds: Sequence[Values]) -> float:
    """Variance between the seeds' means of one subtask beyond what their prompts explain, pooled over the subtasks.
    `seeds`: arrays [prompts, 1]."""
    beyond = []
    for name in seeds[0]:
        between = float(np.var([values[name].mean() for values in seeds], ddof=1))
        beyond.append(between - len(seeds) * float(_covariance_by_prompts(seeds, [name])[0, 0]))
    return max(0.0, float(np.mean(beyond)))


def _resampled(seeds: Sequence[Values]) -> np.ndarray:
    """[draws, subtasks, quantities]: means over seeds, each draw of other seeds (if there are several) and prompts.
    `seeds`: arrays [prompts, quantities]."""
    rng = np.random.default_rng(0)
    names = list(seeds[0])
    # Means of each seed and subtask with its prompts drawn anew, as many as there are draws; a draw picks one of them.
    pools = np.stack([np.stack([_weights(len(values[name])) @ values[name] for name in names]) for values in seeds])
    chosen = rng.integers(len(seeds), size=(DRAWS, len(seeds)))
    total = np.zeros((DRAWS, len(names), pools.shape[-1]))
    for place in range(len(seeds)):
        picked = rng.integers(DRAWS, size=(DRAWS, len(names)))
        total += pools[chosen[:, [place]], np.arange(len(names)), picked]
    return total / len(seeds)


@functools.cache
def _weights(prompts: int) -> np.ndarray:
    """[draws, prompts]: how often each prompt is drawn, over their number."""
    rng = np.random.default_rng(prompts)
    return rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=DRAWS) / prompts


def _bootstraps(seeds: int) -> bool:
    return seeds == 1 or seeds >= MANY_SEEDS


def _t(freedom: int) -> float:
    return float(stats.t.ppf(_TAILS[1], freedom))


def _z() -> float:
    return float(stats.norm.ppf(_TAILS[1]))


def _over(seeds: int) -> str:
    if seeds == 1:
        return "prompts"
    return "seeds and prompts" if seeds >= MANY_SEEDS else "seeds"
