"""How much a critique model doubts what people say: the robust mode's evidence.

Nobody's word is checked against a model that has learned it. Statements are asked of the serving critique model first;
then, in folds, of one that has learned for one epoch from the believed statements of *other* principals, so that it
knows how these people speak and what they see. The cost is one epoch of feedback modelling and two scoring passes.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.algorithms.feedback_modelling import FeedbackModellingConfig, train_critic
from trainer.answer_model import AnswerModel
from trainer.batches import TokenSequence, collate, group_by_length
from trainer.distributed import World
from trainer.examples import Example, Pair
from trainer.optimisation import OptimConfig
from trainer.reliability import Reliability, reliability
from trainer.statements import Statement, Trust

log = logging.getLogger(__name__)

FEWEST = 16  # statements from which a share of wrong ones can be told


@dataclass(frozen=True)
class RobustConfig:
    """The settings with the prefix `robust_`."""

    share: float = 0.0  # of statements that may be wrong or hostile, 0 to 0.5; 0 believes everybody
    folds: int = 2  # critique models learned for cross-checking; 0 asks the serving one alone


def judge_statements(
    world: World,
    checkpoint: Path,
    statements: list[Statement],
    config: RobustConfig,
    critique: FeedbackModellingConfig,
    optim: OptimConfig,
) -> Reliability | None:
    """How far each statement is believed, by the critique model `checkpoint`; None where there are too few to tell."""
    if len(statements) < FEWEST or not config.share:
        return None
    module = AnswerModel.load(checkpoint).eval()
    found = reliability(statements, doubts(module, statements, optim.batch_tokens), config.share)
    if config.folds < 2:
        return found
    crossed = [0.0] * len(statements)
    folds = split(statements, config.folds)
    for fold in range(config.folds):
        asked = [i for i, one in enumerate(folds) if one == fold]
        learned = [
            Example(one.sequences[0], one.response_id, trust)
            for one, trust, at in zip(statements, found.trust, folds, strict=True)
            if at != fold and one.kind == "words" and trust > 0
        ]
        if not asked:
            continue
        if learned:
            trained = train_critic(world, checkpoint, learned, [], replace(critique, epochs=1), optim)
            module.lm.load_state_dict(trained.tensors)
        else:  # the model of the fold before has learned what is asked here
            module = AnswerModel.load(checkpoint).eval()
        for i, doubt in zip(asked, doubts(module, [statements[i] for i in asked], optim.batch_tokens), strict=True):
            crossed[i] = doubt
    return reliability(statements, crossed, config.share)


def split(statements: Sequence[Statement], folds: int) -> list[int]:
    """The fold of each statement. A principal is in one fold, unless there are too few of them; the largest first, each
    into the smallest fold. Then answers are split instead, by a hash."""
    said: dict[str, int] = {}
    for one in statements:
        said[one.principal] = said.get(one.principal, 0) + 1
    if len(said) < 2 * folds or max(said.values()) > len(statements) / folds:
        return [int(hashlib.sha256(one.response_id.encode()).hexdigest()[:8], 16) % folds for one in statements]
    sizes, home = [0] * folds, {}
    for name, count in sorted(said.items(), key=lambda one: (-one[1], one[0])):
        home[name] = sizes.index(min(sizes))
        sizes[home[name]] += count
    return [home[one.principal] for one in statements]


@torch.no_grad()
def doubts(module: AnswerModel, statements: Sequence[Statement], batch_tokens: int) -> list[float]:
    """Nats by which each statement is worse than what the model would say.

    Of words: along them, the log-probability of the likeliest token over that of the token said, summed. So a model
    that does not know doubts nobody, and an unusual wording costs less than a false claim. Of a verdict without words:
    the log-odds of the opposite, where they are positive.
    """
    sequences = [sequence for one in statements for sequence in one.sequences]
    scored = _scores(module, sequences, batch_tokens)
    found, at = [], 0
    for one in statements:
        (regret, logprob), *others = scored[at : at + len(one.sequences)]
        at += len(one.sequences)
        if one.kind == "words":
            found.append(regret)
        elif one.kind == "denial":
            found.append(max(0.0, logprob - _log1mexp(logprob)))
        else:
            found.append(max(0.0, others[0][1] - logprob))
    return found


def _scores(module: AnswerModel, sequences: Sequence[TokenSequence], batch_tokens: int) -> list[tuple[float, float]]:
    """(regret, log-probability) of each sequence's answer, in nats."""
    scores = [(0.0, 0.0)] * len(sequences)
    for group in group_by_length([len(sequence) for sequence in sequences], batch_tokens):
        batch = collate([sequences[i] for i in group])
        logits = module(batch.input_ids, batch.index).float()
        said = logits.gather(-1, batch.targets[:, None]).squeeze(-1)
        regrets = batch.sum_rows(logits.amax(-1) - said)
        logprobs = batch.sum_rows(said - logits.logsumexp(-1))
        for i, regret, logprob in zip(group, regrets.tolist(), logprobs.tolist(), strict=True):
            scores[i] = (regret, logprob)
    return scores


def _log1mexp(value: float) -> float:
    """log(1 - exp(value)) for value < 0."""
    return float(torch.log1p(-torch.exp(Tensor([min(value, -1e-6)]))))


def trust_of(statements: Sequence[Statement], found: Reliability) -> dict[str, float]:
    """By feedback id; of several statements in one piece of feedback the least believed counts."""
    trust: dict[str, float] = {}
    for one, believed in zip(statements, found.trust, strict=True):
        trust[one.id] = min(believed, trust.get(one.id, 1.0))
    return trust


def smoothing(trust: Trust, pairs: Sequence[Pair], least: float) -> float:
    """The label smoothing that fits what may still be wrong: the expected share of wrong statements among those that
    are believed, times the share of the pairs' weight that rests on people. At least `least`, below one half."""
    believed = sum(trust.values())
    residual = sum(one * (1 - one) for one in trust.values()) / believed if believed else 0.0
    whole = sum(pair.weight for pair in pairs)
    people = sum(pair.weight for pair in pairs if pair.voices) / whole if whole else 0.0
    return min(max(least, residual * people), 0.49)


def metrics_of(statements: Sequence[Statement], found: Reliability) -> dict[str, Any]:
    """For the round's record; principals are counted, not named."""
    distrusted = sum(rate > 0.5 for rate in found.rates.values())
    return {
        "robust_statements": len(statements),
        "robust_trimmed": sum(one == 0 for one in found.trust),
        "robust_wrong_expected": round(sum(found.wrong) / max(len(found.wrong), 1), 4),
        "robust_residual": round(found.residual, 4),
        "robust_principals": len(found.rates),
        "robust_principals_distrusted": distrusted,
    }
