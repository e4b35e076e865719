"""Which refinements become pairs where a reward model decides: those that it puts a margin above their answers.

It learns from people's own pairs, and from confident ones: refinements that the critique model approves of answers it,
or a person, called wrong. No confident pair has a say about itself: they are split in two, and each half is judged by a
reward model that learned from the other.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

from trainer.algorithms.reward_model import Reading, TrainedReward
from trainer.examples import Pair
from trainer.optimisation import OptimConfig
from trainer.self_improving import Refined

log = logging.getLogger(__name__)

FEWEST = 16  # pairs from which a reward model learns anything
TrainReward = Callable[[list[Pair]], TrainedReward]


def by_reward(
    refined: Sequence[Refined],
    people: Sequence[Pair],
    train: TrainReward,
    read: Reading,
    margin: float,
    optim: OptimConfig,
) -> tuple[list[Pair], dict[str, Any]]:
    """The pairs whose refinement scores at least `margin` above the answer, and what each of the filters would keep.

    `read`: what the reward model reads of answers. Where there are too few pairs to learn from, the critique model's
    verdicts decide, and the metrics say so.
    """
    kept_by = {"none": len(refined), "critique": sum(one.approved is not False for one in refined)}
    confident = [at for at, one in enumerate(refined) if one.approved]
    if len(people) + len(confident) // 2 < FEWEST:
        log.warning("%d pairs teach no reward model: the critique model filters this round", len(people))
        return [one.pair for one in refined if one.approved], {"filter_kept": kept_by, "filter_fell_back": True}
    margins = [0.0] * len(refined)
    halves = (set(confident[0::2]), set(confident[1::2]))
    for own, other in (halves, halves[::-1]):
        reward = train([*people, *(refined[at].pair for at in sorted(other))])
        # Refinements that the critique model did not approve taught nobody: each half's judge sees every second one.
        rest = [at for at in range(len(refined)) if at not in halves[0] and at not in halves[1]]
        judged = sorted(own | set(rest[0::2] if own is halves[0] else rest[1::2]))
        found_margins = _margins(reward, read, [refined[i].pair for i in judged], optim)
        for at, found in zip(judged, found_margins, strict=True):
            margins[at] = found
    kept = [one.pair for one, found in zip(refined, margins, strict=True) if found >= margin]
    kept_by["reward"] = len(kept)
    agree = sum((found >= margin) is (one.approved is True) for one, found in zip(refined, margins, strict=True))
    return kept, {
        "filter_kept": kept_by,
        "filter_margin_mean": sum(margins) / max(len(margins), 1),
        "filter_agreement": agree / max(len(refined), 1),  # of reward and critique model
    }


def _margins(reward: TrainedReward, read: Reading, pairs: Sequence[Pair], optim: OptimConfig) -> list[float]:
    scores = reward.open(optim)(read([sequence for pair in pairs for sequence in pair.sequences]))
    return [chosen - rejected for chosen, rejected in zip(scores[0::2], scores[1::2], strict=True)]
