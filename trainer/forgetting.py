"""Rounds that do not forget: what some answers say, per kind of work, before and after training; and the way back.

A share of the pairs is held out, and those held out of earlier rounds are remembered. Per signature (see
`trainer.signatures`) two things are watched on them: the log-probability per token of the chosen answer, and the margin
between chosen and rejected. Both may be measured within a second per hundred pairs. A signature got worse where its
margin fell by more than chance explains: the answers it should give have lost against those it should not.

The way back is an average of weights, old and new (Wortsman et al. 2022, arXiv 2109.01903): between two ends of one
training run the loss has no wall, and a little of the old restores much of what was forgotten.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anyloop.sequence import SequenceLayout
from trainer.answer_model import AnswerModel, score_sequences
from trainer.examples import Pair
from trainer.signatures import signature

log = logging.getLogger(__name__)

SHARES = (1.0, 0.75, 0.5, 0.25)  # of the way from the parent to the candidate, the farthest first
FEWEST = 6  # pairs of a signature from which anything is concluded


@dataclass(frozen=True)
class Standing:
    """Of every watched pair, in nats: the chosen answer's log-probability per token, and its margin over the rejected
    one's (of whole answers)."""

    liked: list[float]
    margins: list[float]


@dataclass(frozen=True)
class Change:
    """Of one signature: mean changes from parent to candidate, and whether the margin's fall is more than chance."""

    pairs: int
    liked: float
    margin: float
    worse: bool


def standing(module: AnswerModel, pairs: Sequence[Pair], batch_tokens: int) -> Standing:
    """What a policy says of the watched pairs."""
    scores = score_sequences(module, [sequence for pair in pairs for sequence in pair.sequences], batch_tokens)
    chosen, rejected = scores[0::2], scores[1::2]
    return Standing(
        [float(row.mean()) for row in chosen],
        [float(a.sum() - b.sum()) for a, b in zip(chosen, rejected, strict=True)],
    )


def changes(signatures: Sequence[str], before: Standing, after: Standing, deviations: float = 2.0) -> dict[str, Change]:
    """Per signature. Worse: of at least `FEWEST` pairs the mean margin fell by over `deviations` standard errors."""
    found = {}
    for name in sorted(set(signatures)):
        at = [i for i, one in enumerate(signatures) if one == name]
        liked = [after.liked[i] - before.liked[i] for i in at]
        margins = [after.margins[i] - before.margins[i] for i in at]
        mean = sum(margins) / len(at)
        spread = math.sqrt(sum((one - mean) ** 2 for one in margins) / max(len(at) - 1, 1))
        worse = len(at) >= FEWEST and mean < -deviations * spread / math.sqrt(len(at)) and mean < 0
        found[name] = Change(len(at), sum(liked) / len(at), mean, worse)
    return found


def towards(parent: Mapping[str, Tensor], candidate: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of the way from the parent's weights to the candidate's."""
    return {name: parent[name].float().lerp(tensor.float(), share) for name, tensor in candidate.items()}


def watch(
    parent: Path,
    candidate: dict[str, Tensor],
    pairs: Sequence[Pair],
    layout: SequenceLayout,
    batch_tokens: int,
    *,
    average: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights to publish and what was seen. `average`: where a signature got worse, the farthest of `SHARES` of the
    way at which none is; the nearest where all are (the gate has the last word)."""
    if not pairs:
        return candidate, {}
    module = AnswerModel.load(parent).eval()
    old = {name: tensor.clone() for name, tensor in module.lm.state_dict().items()}
    signatures = [signature(layout, pair.prompt, pair.chosen) for pair in pairs]
    before = standing(module, pairs, batch_tokens)
    weights, seen, share = candidate, {}, 1.0
    lost: list[str] = []
    for share in SHARES if average else SHARES[:1]:
        weights = candidate if share == 1.0 else towards(old, candidate, share)
        module.lm.load_state_dict(weights)
        seen = changes(signatures, before, standing(module, pairs, batch_tokens))
        worse = [name for name, change in seen.items() if change.worse]
        if share == 1.0:
            lost = worse
        if not worse:
            break
    if lost:
        log.warning("training cost %s; %.2f of the way to the new weights is kept", ", ".join(lost), share)
    return weights, {
        "watched_pairs": len(pairs),
        "forgotten": lost,
        "forgetting_share_kept": share,
        "watched": {
            name: {"pairs": one.pairs, "liked": round(one.liked, 4), "margin": round(one.margin, 4)}
            for name, one in seen.items()
        },
    }
