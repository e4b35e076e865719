"""One version against another on the same prompts with the same seeds. Pure.

The unit is the prompt: a version's score there is the mean over its answers, and who has more wins. So every comparison
counts once, and the exact binomial interval and the sign test hold whatever the number of answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from anyloop.evaluation.intervals import Estimate, binomial_interval, bootstrap, sign_test


@dataclass(frozen=True)
class Duel:
    """`win_rate` counts a tie as half a win (bootstrapped over prompts); `decided` is the share of wins among prompts
    that are no tie, with the exact interval; `p_value` is that of the two-sided sign test; `gain` is the mean over
    groups of the mean difference in score, prompts drawn again within each group."""

    wins: int
    ties: int
    losses: int
    win_rate: Estimate
    decided: Estimate
    p_value: float
    gain: Estimate


def duel(groups: Sequence[str], ours: Sequence[float], theirs: Sequence[float]) -> Duel:
    """`ours[i]` and `theirs[i]` are scores of prompt `i`, which belongs to `groups[i]`.

    Raises ValueError on no prompts or unequal lengths.
    """
    if not groups or not len(groups) == len(ours) == len(theirs):
        raise ValueError("as many scores of each version as prompts are needed, and at least one")
    # Rounded: scores are ratios of small counts, and 0.6 made in two ways must be a tie.
    gains = np.round(np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float), 9)
    outcome = np.sign(gains)
    wins, losses = int((outcome > 0).sum()), int((outcome < 0).sum())
    by_group: dict[str, list[float]] = {}
    for group, gain in zip(groups, gains.tolist(), strict=True):
        by_group.setdefault(group, []).append(gain)
    return Duel(
        wins,
        len(groups) - wins - losses,
        losses,
        bootstrap([((outcome + 1) / 2).tolist()]),
        binomial_interval(wins, wins + losses),
        sign_test(wins, losses),
        bootstrap(list(by_group.values())),
    )
