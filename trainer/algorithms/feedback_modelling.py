"""Feedback modelling (arXiv 2412.15838, step 1): L(phi) = -E[log P_phi(c | x, y)] on people's critiques.

Over-training a small critique model on a few hundred critiques makes it say "this is right" too often. So a share of
the critiques only measures, the best epoch is kept, and earlier critiques and logged answers are mixed in.
"""

import hashlib
import logging
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from trainer.algorithms.supervised import answer_tokens, mean_loss, sft_micro_losses, typical_weight
from trainer.answer_model import AnswerModel
from trainer.batches import shuffled_steps, steps_in
from trainer.checkpointing import Notes, SavePoint, fingerprint, training_steps
from trainer.distributed import World
from trainer.engine import closes_engines, open_engine, with_adapter
from trainer.examples import Example
from trainer.lora import merged
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
        (measure if is_held_out(example.source, share) else learn).append(example)
    return learn, measure


def is_held_out(source: str, share: float) -> bool:
    """Whether what was said of a response only measures: by a hash of its id."""
    return int(hashlib.sha256(source.encode()).hexdigest()[:8], 16) / 16**8 < share


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


@closes_engines
def train_critic(
    world: World,
    checkpoint: Path,
    examples: list[Example],
    held_out: list[Example],
    config: FeedbackModellingConfig,
    optim: OptimConfig,
    saving: SavePoint | None = None,
) -> Trained:
    """Continues `checkpoint` on `examples`; the epoch with the lowest loss on `held_out` wins, the start included.

    The weights are on rank 0 only.
    """
    module = AnswerModel.load(checkpoint)
    total = steps_in(len(examples), config.batch, config.epochs)
    engine = open_engine(module, config.lr, total, optim, world)
    before = mean_loss(engine.module, held_out, optim.batch_tokens)
    notes = Notes({"best": before, "best_epoch": 0, "waited": 0, "loss": None})
    typical = typical_weight([one.weight for one in examples])
    inputs = fingerprint("critic", checkpoint, examples, held_out, config, optim)
    steps = _steps(len(examples), config, optim.seed)
    for _, (epoch, step, last) in training_steps({"critic": engine}, steps, world, saving, inputs, notes):
        chosen = [examples[i] for i in step]
        mine = world.shard(chosen)
        parts = sft_micro_losses(
            engine,
            [example for example, _ in mine],
            [weight for _, weight in mine],
            typical * answer_tokens([replace(one, weight=1.0) for one in chosen]),
            optim.batch_tokens,
        )
        facts = notes.facts
        facts["loss"] = engine.step(parts)
        if not last:
            continue
        now = mean_loss(engine.module, held_out, optim.batch_tokens)
        log.info("critique model, epoch %d: training %.3f, held out %.3f", epoch, facts["loss"], now)
        if math.isnan(now) or now < facts["best"]:
            facts |= {"best": now, "best_epoch": epoch, "waited": 0}
            notes.tensors = engine.trained_tensors()
            continue
        facts["waited"] += 1
        if facts["waited"] >= config.patience:
            break
    metrics = {
        "critique_examples": len(examples),
        "critique_held_out": len(held_out),
        "critique_loss_before": before,
        "critique_loss_after": notes.facts["best"],
        "critique_train_loss": notes.facts["loss"],
        "critique_epochs": notes.facts["best_epoch"],
    }
    return Trained(_whole(checkpoint, notes.tensors, optim) if world.rank == 0 else {}, metrics)


def _whole(checkpoint: Path, trained: dict[str, Tensor], optim: OptimConfig) -> dict[str, Tensor]:
    """The LM's weights with what was trained of them: some of the weights, or an adapter; nothing: `checkpoint`'s."""
    module = AnswerModel.load(checkpoint)
    if trained:
        module = with_adapter(module, optim)
        module.load_state_dict(trained, strict=False)
    return lm_tensors(merged({name: one.detach() for name, one in module.state_dict().items()}, module))


def _steps(count: int, config: FeedbackModellingConfig, seed: int) -> Iterator[tuple[int, list[int], bool]]:
    """(epoch, examples, whether the epoch ends there) of every step."""
    for epoch in range(1, config.epochs + 1):
        steps = list(shuffled_steps(count, config.batch, 1, seed + epoch))
        for number, step in enumerate(steps, 1):
            yield epoch, step, number == len(steps)
