"""The reward model: a scalar at the last token, trained on the same pairs as DPO would be."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.algorithms.losses import reward_loss
from trainer.answer_model import ScalarModel
from trainer.batches import TokenSequence, collate, group_by_length, shuffled_steps, steps_in
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Pair

log = logging.getLogger(__name__)


def train_reward_model(
    world: World, checkpoint: Path, pairs: list[Pair], settings: TrainerSettings
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A reward model on the backbone of `checkpoint`. Returns its weights and metrics."""
    total = steps_in(len(pairs), settings.reward_batch, settings.reward_epochs)
    engine = open_engine(ScalarModel.load(checkpoint), settings.reward_lr, total, settings, world)
    losses: list[float] = []
    for step in shuffled_steps(len(pairs), settings.reward_batch, settings.reward_epochs, settings.seed):
        total_weight = max(sum(pairs[i].weight for i in step), 1e-8)
        mine = world.shard([pairs[i] for i in step])

        def part(group: list[int], mine: list[tuple[Pair, float]] = mine, whole: float = total_weight) -> Tensor:
            batch = collate([sequence for i in group for sequence in mine[i][0].sequences])
            scores = engine.module(batch.input_ids, batch.last).view(-1, 2)
            weights = torch.tensor([mine[i][0].weight * mine[i][1] for i in group])
            loss = reward_loss(scores[:, 0], scores[:, 1], weights, settings.reward_regularisation)
            return loss * weights.sum() / whole

        lengths = [max(len(sequence) for sequence in pair.sequences) for pair, _ in mine]
        parts: list[Callable[[], Tensor]] = [
            lambda group=group: part(group)  # type: ignore[misc]
            for group in group_by_length(lengths, settings.batch_tokens // 2)
        ]
        losses.append(engine.step(parts))
        if engine.steps % 10 == 0:
            log.info("reward model step %d of %d: loss %.3f", engine.steps, total, losses[-1])
    chosen = reward_scores(engine.module, [pair.sequences[0] for pair in pairs], settings.batch_tokens)
    rejected = reward_scores(engine.module, [pair.sequences[1] for pair in pairs], settings.batch_tokens)
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
