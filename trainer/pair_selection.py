"""From all the pairs there are to those that a round trains on, each with its weight. Pure.

In this order: a share of the machine-made ones is set aside to watch; people's own come first and the rest is cut;
earlier rounds' are mixed in; kinds of work are balanced; and last, whatever the weights are by then, no voice has more
than its share.
"""

import random
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from anyloop.sequence import SequenceLayout
from trainer.algorithms.feedback_modelling import is_held_out
from trainer.examples import Example, Pair
from trainer.influence import cap_influence
from trainer.replay_buffer import replayed
from trainer.signatures import balanced, signature

if TYPE_CHECKING:
    from trainer.config import TrainerSettings

ENOUGH_TO_HOLD_OUT = 100  # pairs; of fewer, a tenth tells nothing
_MOST_REMEMBERED = 200  # pairs of earlier rounds that watch: a second or two of scoring


@dataclass(frozen=True)
class Selection:
    """`pairs` to train on, `watched` to see what that costs; `fresh` of the pairs are this round's own.

    `held_out`: the sources of this round's own among the watched.
    """

    pairs: list[Pair]
    watched: list[Pair]
    fresh: int
    left_out: Counter[str] = field(default_factory=Counter)
    metrics: dict[str, Any] = field(default_factory=dict)
    held_out: frozenset[str] = frozenset()


def select_pairs(
    made: Sequence[Pair],
    earlier: Sequence[tuple[int, Pair]],
    layout: SequenceLayout,
    settings: "TrainerSettings",
    seed: int,
    held_out: Collection[tuple[int, str]] = (),
) -> Selection:
    """`made`: this round's pairs; `earlier`: (rounds ago, pair), newest first; `seed`: the round's number.

    `held_out`: (rounds ago, source) of the earlier pairs that were not trained on: these watch, and no others.
    """
    left_out: Counter[str] = Counter()
    fitting = [pair for pair in made if fits(pair, settings)]
    if too_long := len(made) - len(fitting):
        left_out["too_long"] += too_long
    watching = settings.forgetting != "off" and len(fitting) >= ENOUGH_TO_HOLD_OUT
    share = settings.forgetting_held_out if settings.forgetting != "off" else 0.0
    # What people gave is always learned from: only answers that nobody made a pair of may watch.
    peoples = {pair.source for pair in fitting if pair.origin != "self-improving"}
    sources = {pair.source for pair in fitting if watching and is_held_out(pair.source, share)} - peoples
    watched = [pair for pair in fitting if pair.source in sources]
    learned = [pair for pair in fitting if pair.source not in sources]

    own = [pair for pair in learned if pair.origin != "self-improving"]
    improved = [pair for pair in learned if pair.origin == "self-improving"]
    random.Random(seed).shuffle(improved)
    if len(own) > settings.max_pairs:  # the cut falls on all alike, not on whoever spoke last
        random.Random(seed).shuffle(own)
    fresh = [*own, *improved][: settings.max_pairs]
    if beyond := len(learned) - len(fresh):
        left_out["beyond_max_pairs"] += beyond

    usable = [(age, pair) for age, pair in earlier if fits(pair, settings)]
    old = [(age, pair) for age, pair in usable if (age, pair.source) not in held_out]
    remembered = [pair for age, pair in usable if (age, pair.source) in held_out] if share else []
    remembered = remembered[:_MOST_REMEMBERED]
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
    metrics |= influence.metrics("pairs")
    own_watched = frozenset(pair.source for pair in watched)
    return Selection(weighed, watched + remembered, len(fresh), left_out, metrics, own_watched)


def unwatched(imitations: Sequence[Example], watched: Sequence[Pair]) -> list[Example]:
    """Answers to imitate without those that only watch: to learn them would hide what the training cost."""
    sources = {pair.source for pair in watched}
    chosen = {(pair.prompt, pair.chosen) for pair in watched}
    return [
        one
        for one in imitations
        if one.source not in sources and (one.sequence.prompt, one.sequence.answer) not in chosen
    ]


def fits(pair: Pair, settings: "TrainerSettings") -> bool:
    """Whether both answers, with their prompt, are short enough to train on."""
    return all(len(sequence) <= settings.max_tokens for sequence in pair.sequences)
