"""The reward model: a scalar at the last token, trained on the same pairs as DPO would be.

It reads an answer as it stands, or after a critique of it (arXiv 2408.11791): whoever has the critique model at hand
makes what is read, here it is scored.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from anyloop.sequence import Sequencer
from trainer.algorithms.losses import reward_loss
from trainer.algorithms.rollout import Score
from trainer.algorithms.supervised import typical_weight
from trainer.answer_model import ScalarModel
from trainer.batches import TokenSequence, shuffled_steps, steps_in
from trainer.checkpointing import Notes, SavePoint, fingerprint, training_steps
from trainer.distributed import World
from trainer.engine import closes_engines, open_engine
from trainer.examples import Pair
from trainer.model_family import ModelFamily
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing
from trainer.shared_prefix import Group, Sharing, group_answers, group_pairs

log = logging.getLogger(__name__)

# Prompt and answer; or the prompt that asks for a critique of them, and what the critique model says to it.
View = Literal["answer", "critique"]
Reading = Callable[[Sequence[TokenSequence]], list[TokenSequence]]


@dataclass(frozen=True)
class RewardConfig:
    """The settings with the prefix `reward_`."""

    lr: float = 5e-4
    epochs: int = 3
    batch: int = 8  # pairs per optimiser step
    regularisation: float = 0.001  # weight of mean(score^2): keeps the scores near zero
    # Few pairs do not teach a scalar head to compare an answer with its prompt (53 % right on held-out pairs of the
    # reference world after 40 preferences); to read what a taught critique model says of it they do (90 %; tried once).
    view: View = "critique"
    start: Literal["policy", "critique"] = "critique"  # the weights it begins from


class Reward(Protocol):
    """What answers are rewarded by. A training function opens it in its own process."""

    @property
    def value_start(self) -> dict[str, Tensor] | None:
        """Weights of a ScalarModel that a value function over prompt and answer may begin from."""

    def open(self, optim: OptimConfig) -> Score:
        """A function of what the reward reads of answers (`Rollout.read`)."""


@dataclass(frozen=True)
class TrainedReward:
    """A reward model's weights, on the backbone of `checkpoint`; with LoRA those of its adapter and head."""

    checkpoint: Path
    tensors: dict[str, Tensor]
    view: View = "answer"
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def value_start(self) -> dict[str, Tensor] | None:
        return self.tensors if self.view == "answer" else None  # it knows what a good end looks like

    def open(self, optim: OptimConfig) -> Score:
        return self.open_in(ModelFamily(self.checkpoint, optim), optim)

    def open_in(self, family: ModelFamily, optim: OptimConfig) -> Score:
        """As one of `family`, whose base it may share."""
        model = family.scalar("reward", self.tensors)
        sharing = prove_sharing(model, optim.shared_prefix)

        def score(read: Sequence[TokenSequence]) -> list[float]:
            return reward_scores(model, read, optim.batch_tokens, sharing)

        return score


def open_reward(reward: Reward, family: ModelFamily, optim: OptimConfig) -> Score:
    """`reward` beside the other models of `family`, on their base weights where it can be."""
    if isinstance(reward, TrainedReward):
        return reward.open_in(_home(reward, family, optim), optim)
    return reward.open(optim)


def value_model(reward: Reward, family: ModelFamily, optim: OptimConfig) -> ScalarModel:
    """A value function that begins as the reward model, where that reads the same."""
    if isinstance(reward, TrainedReward):
        family = _home(reward, family, optim)
    return family.scalar("critic", reward.value_start)


def _home(reward: TrainedReward, family: ModelFamily, optim: OptimConfig) -> ModelFamily:
    return family if reward.checkpoint == family.checkpoint else ModelFamily(reward.checkpoint, optim, family.world)


def made_of(reward: Reward) -> tuple[object, ...]:
    """What tells one reward from another, for `fingerprint`."""
    return (reward.checkpoint, reward.view, reward.tensors) if isinstance(reward, TrainedReward) else ()


def with_critique(sequencer: Sequencer, sequence: TokenSequence, critique: str) -> TokenSequence:
    """What a reward model of the view `critique` reads of an answer. Raises LayoutError on tokens of another layout."""
    turns = sequencer.parse_prompt(sequence.prompt)
    asked = sequencer.critique_prompt(turns, sequencer.parse(sequence.answer))
    return TokenSequence(tuple(asked), tuple(sequencer.answer([critique] if critique else [])))


@closes_engines
def train_reward_model(
    world: World,
    checkpoint: Path,
    pairs: list[Pair],
    config: RewardConfig,
    optim: OptimConfig,
    saving: SavePoint | None = None,
    views: list[tuple[TokenSequence, TokenSequence]] | None = None,
) -> TrainedReward:
    """A reward model on the backbone of `checkpoint`.

    `views`: what it reads of the chosen and the rejected answer of each pair. Raises ValueError without them, where
    `config.view` is not `answer`.
    """
    if views is None:
        if config.view != "answer":
            raise ValueError(f"a reward model of the view {config.view} reads more than the pairs: give the views too")
        views = [pair.sequences for pair in pairs]
    total = steps_in(len(pairs), config.batch, config.epochs)
    model = ScalarModel.load(checkpoint)
    sharing = prove_sharing(model, optim.shared_prefix)
    engine = open_engine(model, config.lr, total, optim, world)
    notes = Notes({"loss": float("nan")})
    inputs = fingerprint("reward", checkpoint, pairs, views, config, optim)
    steps = shuffled_steps(len(pairs), config.batch, config.epochs, optim.seed)
    typical = typical_weight([pair.weight for pair in pairs])
    for number, step in training_steps({"reward": engine}, steps, world, saving, inputs, notes):
        total_weight = typical * len(step)
        mine = world.shard(step)
        sequences = [sequence for i, _ in mine for sequence in views[i]]
        weights = torch.tensor([pairs[i].weight * scale for i, scale in mine])
        parts: list[Callable[[], Tensor]] = [
            partial(pair_loss, engine.module, group, sequences, weights, total_weight, config.regularisation)
            for group in group_pairs(sequences, optim.batch_tokens, sharing)
        ]
        notes.facts["loss"] = engine.step(parts)
        if (number + 1) % 10 == 0:
            log.info("reward model step %d of %d: loss %.3f", number + 1, total, notes.facts["loss"])
    everything = [sequence for view in views for sequence in view]
    scores = reward_scores(engine.module, everything, optim.batch_tokens, sharing)
    metrics = {
        "reward_loss": notes.facts["loss"],
        "reward_accuracy": sum(a > b for a, b in zip(scores[0::2], scores[1::2], strict=True)) / max(len(pairs), 1),
    }
    tensors = engine.trained_tensors() if optim.lora_rank else engine.tensors()
    return TrainedReward(checkpoint, tensors, config.view, metrics)


def pair_loss(
    module: nn.Module,
    group: Group,
    sequences: Sequence[TokenSequence],
    weights: Tensor,
    whole: float,
    regularisation: float,
) -> Tensor:
    """The part that a group of pairs has in the step's weighted mean; `weights` of all its pairs, `whole` their sum."""
    batch = group.collate(sequences)
    scores = module(*batch.inputs(batch.last)).view(-1, 2)
    mine = weights[[i // 2 for i in group.order[::2]]]
    return reward_loss(scores[:, 0], scores[:, 1], mine, regularisation) * mine.sum() / whole


@torch.no_grad()
def reward_scores(
    module: nn.Module, sequences: Sequence[TokenSequence], batch_tokens: int, sharing: Sharing | None = None
) -> list[float]:
    """The score of each whole sequence."""
    scores = [0.0] * len(sequences)
    for group in group_answers(sequences, batch_tokens, sharing):
        batch = group.collate(sequences)
        for i, score in zip(group.order, module(*batch.inputs(batch.last)).tolist(), strict=True):
            scores[i] = score
    return scores
