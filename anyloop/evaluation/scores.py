"""AMU, AMG and their mean, as eval-anything defines them (arXiv 2412.15838). Pure.

- AMU (understanding): the mean of four category means, each of ratings 1-10.
- AMG (generation): the sum over the pairs (T, V), (T, A), (V, A) of 1/2 * alpha * (S_i + S_j) * S_ij.
- Overall: (AMU + AMG) / 2.

The published rows come out of these functions within rounding (tests/evaluation/test_scores.py). AMG is no score out
of ten: with every vote, every instruction followed and full synergy it is 30.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Slot = Literal["text", "visual", "audio"]
SLOTS: tuple[Slot, ...] = ("text", "visual", "audio")
PAIRS: tuple[tuple[Slot, Slot], ...] = (("text", "visual"), ("text", "audio"), ("visual", "audio"))
CATEGORIES = ("perception", "reasoning", "instruction following", "safety")


@dataclass(frozen=True)
class Generation:
    """What AMG is made of: `selection` is alpha, the share (0-1) of votes for the chosen sets of modalities;
    `following` S_i, 0-10 for each slot; `synergy` S_ij, 0-1 for each pair."""

    selection: float
    following: Mapping[Slot, float]
    synergy: Mapping[tuple[Slot, Slot], float]

    def __post_init__(self) -> None:
        checks = [("selection", self.selection, 1.0)]
        checks += [(f"following of {slot}", value, 10.0) for slot, value in self.following.items()]
        checks += [(f"synergy of {' and '.join(pair)}", value, 1.0) for pair, value in self.synergy.items()]
        for name, value, most in checks:
            if not 0 <= value <= most:
                raise ValueError(f"{name} is {value}; it lies between 0 and {most:g}")
        if set(self.following) != set(SLOTS) or set(self.synergy) != set(PAIRS):
            raise ValueError("a score for each of text, visual, audio and a synergy for each pair are needed")


def amg(generation: Generation) -> float:
    """0-30."""
    return sum(
        generation.selection / 2 * (generation.following[i] + generation.following[j]) * generation.synergy[i, j]
        for i, j in PAIRS
    )


def amu(categories: Mapping[str, float]) -> float:
    """The mean of the four category means, 1-10. Raises ValueError when one is missing or outside of 1-10."""
    if set(categories) != set(CATEGORIES):
        raise ValueError(f"AMU is the mean of {', '.join(CATEGORIES)}; given: {', '.join(categories) or 'none'}")
    for name, value in categories.items():
        if not 1 <= value <= 10:
            raise ValueError(f"{name} is {value}; ratings lie between 1 and 10")
    return math.fsum(categories.values()) / len(CATEGORIES)


def overall(understanding: float, generation: float) -> float:
    """(AMU + AMG) / 2."""
    return (understanding + generation) / 2
