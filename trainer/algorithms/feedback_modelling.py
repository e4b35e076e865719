"""Feedback modelling (arXiv 2412.15838, step 1): L(phi) = -E[log P_phi(c | x, y)] on people's critiques.

Over-training a small critique model on a few hundred critiques makes it say "this is right" too often. So a share of
the critiques only measures, the best epoch is kept, and earlier critiques and logged answers are mixed in.
"""

import hashlib
import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.algorithms.supervised import answer_tokens, mean_loss, sft_micro_losses
from trainer.answer_model import AnswerModel
from trainer.batches import shuffled_steps, steps_in
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Example
from trainer.optimisation import OptimConfig
from trainer.trained import Trained, lm_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeedbackModellingConfig:
    """The settings with the prefix `critique_`."""

    lr: float = 3e-4
    epochs: int = 4  # at most; early stopping on held-out critiques ends it sooner; 0 trains no critique model
    batch: int = 16  # examples per optimiser step
    held_out: float = 0.1  # share of critiques that only measure
    patience: int = 1  # epochs without a better held-out loss before stopping
    replay: float = 0.5  # earlier rounds' critiques mixed in, per new one
    anchor: float = 0.25  # logged answers mixed in, per critique: keeps perception


def split_held_out(examples: Sequence[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(to learn, to measure), by a hash of the response id: an answer is on the same side in every round."""
    learn: list[Example] = []
    measure: list[Example] = []
    for example in examples:
        draw = int(hashlib.sha256(example.source.encode()).hexdigest()[:8], 16) / 16**8
        (measure if draw < share else learn).append(example)
    return learn, measure


def mix(
    fresh: Sequence[Example],
    replay: Sequence[Example],
    anchors: Sequence[Example],
    config: FeedbackModellingConfig,
    seed: int,
) -> list[Example]:
    """New critiques with the configured shares of earlier critiques and of logged answers."""
    choose = random.Random(seed)
    mixed = list(fresh)
    for pool, share in ((replay, config.replay), (anchors, config.anchor)):
        mixed += choose.sample(list(pool), min(len(pool), round(share * len(fresh))))
    return mixed


def train_critic(
    world: World,
    checkpoint: Path,
    examples: list[Example],
    held_out: list[Example],
    config: FeedbackModellingConfig,
    optim: OptimConfig,
) -> Trained:
    """Continues `checkpoint` on `examples`; the epoch with the lowest loss on `held_out` wins, the start included."""
    module = AnswerModel.load(checkpoint)
    total = steps_in(len(examples), config.batch, config.epochs)
    engine = open_engine(module, config.lr, total, optim, world)
    before = mean_loss(engine.module, held_out, optim.batch_tokens)
    best, best_tensors, best_epoch = before, engine.tensors(), 0
    losses: list[float] = []
    waited = 0
    for epoch in range(1, config.epochs + 1):
        for step in shuffled_steps(len(examples), config.batch, 1, optim.seed + epoch):
            chosen = [examples[i] for i in step]
            mine = world.shard(chosen)
            parts = sft_micro_losses(
                engine,
                [example for example, _ in mine],
                [weight for _, weight in mine],
                answer_tokens(chosen),
                optim.batch_tokens,
            )
            losses.append(engine.step(parts))
        now = mean_loss(engine.module, held_out, optim.batch_tokens)
        log.info("critique model, epoch %d: training %.3f, held out %.3f", epoch, losses[-1], now)
        if math.isnan(now) or now < best:
            best, best_tensors, best_epoch, waited = now, engine.tensors(), epoch, 0
            continue
        waited += 1
        if waited >= config.patience:
            break
    metrics = {
        "critique_examples": len(examples),
        "critique_held_out": len(held_out),
        "critique_loss_before": before,
        "critique_loss_after": best,
        "critique_train_loss": losses[-1] if losses else None,
        "critique_epochs": best_epoch,
    }
    return Trained(lm_tensors(best_tensors), metrics)
