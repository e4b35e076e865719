"""From all the pairs there are to those that a round trains on, each with its weight. Pure.

In this order: a share is set aside to watch; people's own come first and the rest is cut; earlier rounds' are mixed in;
kinds of work are balanced; and last, whatever the weights are by then, no voice has more than its share.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from anyloop.sequence import SequenceLayout
from trainer.algorithms.feedback_modelling import is_held_out
from trainer.examples import Pair
from trainer.influence import cap_influence
from trainer.replay_buffer import replayed
from trainer.signatures import balanced, signature

if TYPE_CHECKING:
    from trainer.config import TrainerSettings

ENOUGH_TO_HOLD_OUT = 100  # pairs; of fewer, a tenth tells nothing
_MOST_REMEMBERED = 200  # pairs of earlier rounds that watch: a second or two of scoring


@dataclass(frozen=True)
class Selection:
    """`pairs` to train on, `watched` to see what that costs; `fresh` of the pairs are this round's own."""

    pairs: list[Pair]
    watched: list[Pair]
    fresh: int
    left_out: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Any] = field(default_factory=dict)


def select_pairs(
    made: Sequence[Pair],
    earlier: Sequence[tuple[int, Pair]],
    layout: SequenceLayout,
    settings: "TrainerSettings",
    seed: int,
) -> Selection:
    """`made`: this round's pairs; `earlier`: (rounds ago, pair), newest first; `seed`: the round's number."""
    left_out: Counter[str] = Counter()
    fitting = [pair for pair in made if _fits(pair, settings)]
    if too_long := len(made) - len(fitting):
        left_out["too_long"] += too_long
    watching = settings.forgetting != "off" and len(fitting) >= ENOUGH_TO_HOLD_OUT
    share = settings.forgetting_held_out if settings.forgetting != "off" else 0.0
    watched = [pair for pair in fitting if watching and is_held_out(pair.source, share)]
    learned = [pair for pair in fitting if not (watching and is_held_out(pair.source, share))]

    own = [pair for pair in learned if pair.origin != "self-improving"]
    improved = [pair for pair in learned if pair.origin == "self-improving"]
    random.Random(seed).shuffle(improved)
    fresh = [*own, *improved][: settings.max_pairs]
    if beyond := len(learned) - len(fresh):
        left_out["beyond_max_pairs"] += beyond

    usable = [(age, pair) for age, pair in earlier if _fits(pair, settings)]
    old = [one for one in usable if not is_held_out(one[1].source, share)]
    remembered = [pair for _, pair in usable if is_held_out(pair.source, share)][:_MOST_REMEMBERED]
    again = replayed(old, fresh, settings.replay_pairs, settings.replay_decay, seed)
    pairs = fresh + again
    signatures = [signature(layout, pair.prompt, pair.chosen) for pair in pairs]
    influence = cap_influence(
        balanced(pairs, signatures, settings.balance),
        [pair.voices for pair in pairs],
        settings.max_principal_share,
    )
    weighed = [replace(pair, weight=weight) for pair, weight in zip(pairs, influence.weights, strict=True)]
    metrics: dict[str, Any] = {
        "pairs_by_origin": dict(Counter(pair.origin for pair in fresh)),
        "pairs_by_signature": dict(sorted(Counter(signatures).items())),
        "pairs_replayed": len(again),
        "pairs_watched": len(watched) + len(remembered),
    }
    return Selection(weighed, watched + remembered, len(fresh), left_out, metrics | influence.metrics("pairs"))


def _fits(pair: Pair, settings: "TrainerSettings") -> bool:
    return all(len(sequence) <= settings.max_tokens for sequence in pair.sequences)
