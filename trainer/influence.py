"""No single voice steers the model: a cap on the share of a round's weight that comes from one principal.

How many events a principal brings is capped when a round is claimed (`max_per_principal`); here it is what they weigh,
after everything else has been weighed: one who speaks thirty times as often as others has no thirty votes.

The cap has an end: it takes no more than three quarters of an example's weight. Else, of two who speak, one with a
single word would hold half of all, and it would weigh two hundred times as much as each of the other's two hundred.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from trainer.examples import Example

LEAST_FACTOR = 0.25  # an example weighs at most four times another that weighed as much before the cap
_HEARD = 0.1  # of an example's mean weight: who has less in all is no voice that another is measured by

Voices = tuple[str, ...]  # the principals whose statements an example rests on; empty for what a model said


@dataclass(frozen=True)
class Influence:
    """Weights under the cap, and the largest share of one principal before and after."""

    weights: list[float]
    voices: int
    capped: int
    largest_before: float
    largest_after: float

    def metrics(self, name: str) -> dict[str, float]:
        return {
            f"{name}_voices": self.voices,
            f"{name}_voices_capped": self.capped,
            f"{name}_largest_share_before": round(self.largest_before, 4),
            f"{name}_largest_share": round(self.largest_after, 4),
        }


def cap_influence(weights: Sequence[float], voices: Sequence[Voices], max_share: float) -> Influence:
    """Lowers weights so that no principal holds more than `max_share` of the total.

    An example of several principals counts for each in equal parts, which are lowered each for itself. Where fewer than
    1/max_share principals speak, and nothing else, the cap is 1 / their number: equal voices are the most that can be
    asked for; a single one is left as it is. Who has next to no weight does not count there. No weight is lowered below
    `LEAST_FACTOR` of itself: where that is not enough the cap gives way, and `largest_after` says how far.
    """
    totals = _totals(weights, voices)
    if not totals:
        return Influence(list(weights), 0, 0, 0.0, 0.0)
    whole = sum(weights)
    least = _HEARD * whole / max(sum(weight > 0 for weight in weights), 1)
    heard = sum(total > least for total in totals.values())
    level = _level(sorted(totals.values(), reverse=True), whole, max(max_share, 1 / max(heard, 1)))
    factor = {name: max(LEAST_FACTOR, min(1.0, level / total)) if total > 0 else 1.0 for name, total in totals.items()}
    lowered = [
        weight * (sum(factor[name] for name in names) / len(names) if names else 1.0)
        for weight, names in zip(weights, voices, strict=True)
    ]
    after = max(factor[name] * total for name, total in totals.items())
    return Influence(
        lowered,
        len(totals),
        sum(one < 1 for one in factor.values()),
        max(totals.values()) / whole if whole else 0.0,
        after / sum(lowered) if sum(lowered) else 0.0,
    )


def cap_examples(examples: Sequence[Example], max_share: float) -> tuple[list[Example], Influence]:
    """The same examples with weights under the cap."""
    found = cap_influence([one.weight for one in examples], [one.voices for one in examples], max_share)
    return [replace(one, weight=weight) for one, weight in zip(examples, found.weights, strict=True)], found


def _totals(weights: Sequence[float], voices: Sequence[Voices]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for weight, names in zip(weights, voices, strict=True):
        for name in names:
            totals[name] = totals.get(name, 0.0) + weight / len(names)
    return totals


def _level(totals: Sequence[float], whole: float, share: float) -> float:
    """The most weight that a principal may keep: level = share * (what all keep). `totals` in falling order.

    With the k heaviest at the level and the rest as they are: level = share * (k * level + rest).
    """
    rest = whole
    for count, total in enumerate(totals):
        left = 1 - share * count
        if left < 1e-9:  # those before have all there is to have: by rounding, or because what follows weighs nothing
            return totals[count - 1]
        if total <= share * (count * total + rest):  # this one fits without a cap, and so do all after it
            return total if count == 0 else share * max(rest, 0.0) / left
        rest -= total
    # Only where the cap is 1 / number of voices and nothing else has weight: all come down to the quietest.
    return totals[-1]
