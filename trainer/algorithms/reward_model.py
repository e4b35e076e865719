"""The reward model: a scalar at the last token, trained on the same pairs as DPO would be."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.algorithms.losses import reward_loss
from trainer.answer_model import ScalarModel
from trainer.batches import TokenSequence, collate, group_by_length, shuffled_steps, steps_in
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Pair
from trainer.optimisation import OptimConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RewardConfig:
    """The settings with the prefix `reward_`."""

    lr: float = 5e-4
    epochs: int = 3
    batch: int = 8  # pairs per optimiser step
    regularisation: float = 0.001  # weight of mean(score^2): keeps the scores near zero


def train_reward_model(
    world: World, checkpoint: Path, pairs: list[Pair], config: RewardConfig, optim: OptimConfig
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A reward model on the backbone of `checkpoint`. Returns its weights and metrics."""
    total = steps_in(len(pairs), config.batch, config.epochs)
    engine = open_engine(ScalarModel.load(checkpoint), config.lr, total, optim, world)
    losses: list[float] = []
    for step in shuffled_steps(len(pairs), config.batch, config.epochs, optim.seed):
        total_weight = max(sum(pairs[i].weight for i in step), 1e-8)
        mine = world.shard([pairs[i] for i in step])

        def part(group: list[int], mine: list[tuple[Pair, float]] = mine, whole: float = total_weight) -> Tensor:
            batch = collate([sequence for i in group for sequence in mine[i][0].sequences])
            scores = engine.module(batch.input_ids, batch.last).view(-1, 2)
            weights = torch.tensor([mine[i][0].weight * mine[i][1] for i in group])
            loss = reward_loss(scores[:, 0], scores[:, 1], weights, config.regularisation)
            return loss * weights.sum() / whole

        lengths = [max(len(sequence) for sequence in pair.sequences) for pair, _ in mine]
        parts: list[Callable[[], Tensor]] = [
            lambda group=group: part(group)  # type: ignore[misc]
            for group in group_by_length(lengths, optim.batch_tokens // 2)
        ]
        losses.append(engine.step(parts))
        if engine.steps % 10 == 0:
            log.info("reward model step %d of %d: loss %.3f", engine.steps, total, losses[-1])
    chosen = reward_scores(engine.module, [pair.sequences[0] for pair in pairs], optim.batch_tokens)
    rejected = reward_scores(engine.module, [pair.sequences[1] for pair in pairs], optim.batch_tokens)
    metrics = {
        "reward_loss": losses[-1] if losses else float("nan"),
        "reward_accuracy": sum(a > b for a, b in zip(chosen, rejected, strict=True)) / max(len(pairs), 1),
    }
    return engine.tensors(), metrics


@torch.no_grad()
def reward_scores(module: nn.Module, sequences: Sequence[TokenSequence], batch_tokens: int) -> list[float]:
    """The score of each whole sequence."""
    scores = [0.0] * len(sequences)
    for group in group_by_length([len(sequence) for sequence in sequences], batch_tokens):
        batch = collate([sequences[i] for i in group])
        for i, score in zip(group, module(batch.input_ids, batch.last).tolist(), strict=True):
            scores[i] = score
    return scores
