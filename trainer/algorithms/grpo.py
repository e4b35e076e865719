"""Group relative policy optimisation (arXiv 2402.03300): several answers to each prompt are rewarded, and an answer's
advantage is how far it is above the mean of its group, so no value model is needed.

Answers come from the serving engine, sampled by the actor's current weights; importance ratios are taken, token by
token, against the log-probabilities it logged. Scaling, clipping, aggregation and KL are options as in TRL.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyloop.sequence import SequenceLayout
from trainer.algorithms.actor import Answers, Watch, actor_pass, first_and_last
from trainer.algorithms.losses import (
    Aggregation,
    Scale,
    answer_factors,
    clipped_surrogate,
    group_advantages,
    kl_per_token,
)
from trainer.algorithms.reward_model import Reward, made_of, open_reward
from trainer.algorithms.rollout import Rollout, RolloutSource, Score, answers_of
from trainer.algorithms.supervised import answer_tokens, sft_micro_losses
from trainer.answer_model import AnswerModel
from trainer.batches import shuffled_steps, steps_in
from trainer.checkpointing import Notes, SavePoint, each_step, fingerprint, training_steps
from trainer.distributed import World
from trainer.engine import Engine, closes_engines, open_engine
from trainer.examples import Example
from trainer.grammar_table import GrammarTable
from trainer.model_family import ModelFamily
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing
from trainer.shared_prefix import Group, Sharing, group_answers
from trainer.trained import Trained, lm_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GRPOConfig:
    """The settings with the prefix `grpo_`."""

    lr: float = 2e-4
    iterations: int = 8  # rollout and update turns per round
    prompts: int = 32  # prompts per turn
    group: int = 8  # answers per prompt
    epochs: int = 1  # passes over each turn's answers
    batch: int = 8  # prompts per optimiser step, with all their answers
    scale: Scale = "group"  # advantages over the standard deviation of their group, of the turn, or none (Dr. GRPO)
    loss: Aggregation = "dapo"  # how token losses add up; see losses.answer_factors
    kl: float = 0.0  # weight of the k3 estimate of KL(policy || reference)
    kl_corrected: bool = True  # times the importance ratio, so that its gradient is that of the KL (arXiv 2512.02556)
    clip_low: float = 0.2  # a ratio below 1 - clip_low earns nothing more
    clip_high: float = 0.2  # a ratio above 1 + clip_high earns nothing more; DAPO takes 0.28
    sft_coefficient: float = 0.0  # weight of the likelihood of chosen answers beside GRPO


@dataclass(frozen=True)
class Experience:
    """A rollout, its advantage, and the reference's log-probabilities `[tokens]` (None without KL)."""

    rollout: Rollout
    advantage: float
    reference: Tensor | None = None


@dataclass
class GRPOTraining:
    """The actor, the reference (None without KL), the reward, and the grammar (None: free text)."""

    actor: Engine
    reference: AnswerModel | None
    score: Score
    table: GrammarTable | None
    sharing: Sharing | None
    config: GRPOConfig
    optim: OptimConfig
    world: World

    @classmethod
    def open(
        cls, world: World, checkpoint: Path, reference: Path, reward: Reward, config: GRPOConfig, optim: OptimConfig
    ) -> "GRPOTraining":
        family = ModelFamily(checkpoint, optim, world)
        policy = family.policy(AnswerModel)
        table = GrammarTable(SequenceLayout.load(checkpoint), int(policy.lm.config.vocab_size))
        sharing = prove_sharing(policy, optim.shared_prefix)
        updates = config.iterations * steps_in(config.prompts, config.batch, config.epochs)
        actor = open_engine(policy, config.lr, updates, optim, world)
        anchor = family.reference(reference) if config.kl else None
        return cls(actor, anchor, open_reward(reward, family, optim), table, sharing, config, optim, world)


@closes_engines
def train_grpo(
    world: World,
    checkpoint: Path,
    reference: Path,
    reward: Reward,
    imitations: list[Example],
    config: GRPOConfig,
    optim: OptimConfig,
    saving: SavePoint | None = None,
    rollouts: RolloutSource | None = None,
) -> Trained:
    """Continues `checkpoint`. `rollouts` exists on rank 0 only; the others receive what it returns.

    Raises ServiceError (retriable) where the first turn has no answer; a later turn without is counted and passed over.
    """
    learner = GRPOTraining.open(world, checkpoint, reference, reward, config, optim)
    notes = Notes({"history": [], "empty": 0})
    inputs = fingerprint("grpo", checkpoint, reference, *made_of(reward), imitations, config, optim)
    turns = training_steps({"actor": learner.actor}, range(config.iterations), world, each_step(saving), inputs, notes)
    for turn, _ in turns:
        weights = lm_tensors(learner.actor.tensors()) if turn else None
        sampled = world.from_rank0(partial(answers_of, rollouts, turn, weights) if rollouts else None)
        if not sampled:
            notes.facts["empty"] += 1
            log.warning("grpo turn %d of %d has no answer to learn from", turn + 1, config.iterations)
            continue
        experience, seen = collect(learner, sampled)
        notes.facts["history"].append(seen | update(learner, experience, imitations, turn))
        log.info("grpo turn %d of %d: %s", turn + 1, config.iterations, notes.facts["history"][-1])
    history: list[dict[str, float]] = notes.facts["history"]
    metrics: dict[str, Any] = {"grpo_turns": len(history), "grpo_empty_turns": notes.facts["empty"]} | first_and_last(
        history, "grpo_"
    )
    metrics["kl"] = metrics.get("grpo_kl_last", 0.0)
    return Trained(lm_tensors(learner.actor.tensors()), metrics)


@torch.no_grad()
def collect(learner: GRPOTraining, rollouts: Sequence[Rollout]) -> tuple[list[Experience], dict[str, float]]:
    """Scores the answers, and compares those of a group."""
    sequences = [rollout.sequence for rollout in rollouts]
    scores = torch.tensor(learner.score([rollout.read for rollout in rollouts]))
    groups = torch.tensor([rollout.group for rollout in rollouts])
    advantages = group_advantages(scores, groups, learner.config.scale)
    references: list[Tensor | None] = [None] * len(rollouts)
    if learner.reference is not None:
        for group in group_answers(sequences, learner.optim.batch_tokens, learner.sharing):
            answers = Answers.of(rollouts, group, learner.table)
            rows = answers.batch.split_rows(actor_pass(learner.reference, answers).logprobs)
            for i, row in zip(group.order, rows, strict=True):
                references[i] = row
    undecided = {int(group) for group in groups if not bool(advantages[groups == group].any())}
    experience = [
        Experience(rollout, advantage, reference)
        for rollout, advantage, reference in zip(rollouts, advantages.tolist(), references, strict=True)
    ]
    return experience, {
        "reward": float(scores.mean()),
        "undecided": len(undecided) / len(groups.unique()),  # groups whose answers all got the same reward
        "length": sum(len(rollout.answer) for rollout in rollouts) / len(rollouts),
    }


def update(
    learner: GRPOTraining, experience: Sequence[Experience], imitations: Sequence[Example], turn: int
) -> dict[str, float]:
    """Some epochs over one turn's answers; a step takes whole groups."""
    config, optim = learner.config, learner.optim
    groups: dict[int, list[Experience]] = {}
    for one in experience:
        groups.setdefault(one.rollout.group, []).append(one)
    order = list(groups.values())
    watch, losses = Watch(), []
    steps = list(shuffled_steps(len(order), config.batch, config.epochs, optim.seed + turn))
    tokens = config.epochs * sum(counted(one) for one in experience) / max(len(steps), 1)
    for number, step in enumerate(steps):
        chosen = [one for i in step for one in order[i]]
        mine = learner.world.shard(list(zip(chosen, factors(chosen, config, tokens), strict=True)))
        scaled = [(one, factor * scale) for (one, factor), scale in mine]
        parts: list[Callable[[], Tensor]] = [
            partial(policy_part, learner, scaled, group, watch, number == 0)
            for group in group_answers([one.rollout.sequence for one, _ in scaled], optim.batch_tokens, learner.sharing)
        ]
        liked = list(imitations[number :: len(steps)]) if config.sft_coefficient else []
        if liked:
            shard = learner.world.shard(liked)
            scales = [scale * config.sft_coefficient for _, scale in shard]
            examples = [example for example, _ in shard]
            parts += sft_micro_losses(learner.actor, examples, scales, answer_tokens(liked), optim.batch_tokens)
        losses.append(learner.actor.step(parts))
    return watch.means() | {"policy_loss": sum(losses) / max(len(losses), 1)}


def counted(one: Experience) -> int:
    """Answer tokens that are not too old."""
    return int((one.rollout.weights > 0).sum())


def factors(chosen: Sequence[Experience], config: GRPOConfig, tokens_per_step: float) -> list[float]:
    """What the summed token losses of each answer of a step count."""
    lengths = torch.tensor([float(counted(one)) for one in chosen])
    longest = max(len(one.rollout.answer) for one in chosen)
    limits = torch.tensor([float(one.rollout.limit or longest) for one in chosen])
    return answer_factors(lengths, config.loss, limits, tokens_per_step).tolist()


def policy_part(
    learner: GRPOTraining, step: Sequence[tuple[Experience, float]], group: Group, watch: Watch, first: bool
) -> Tensor:
    """The share of a `group` in the loss of a `step`: answers with the factor of each.

    `first`: nothing has been updated since the weights were staged.
    """
    config = learner.config
    answers = Answers.of([one.rollout for one, _ in step], group, learner.table)
    some = [step[i] for i in group.order]
    owner = answers.batch.owner
    advantages = torch.tensor([one.advantage for one, _ in some])[owner]
    found = actor_pass(learner.actor.module, answers)
    watch.add(found, answers, advantages, config.clip_low, config.clip_high, first)
    loss = clipped_surrogate(found.logprobs, answers.logged, advantages, config.clip_low, config.clip_high)
    reference = [one.reference for one, _ in some if one.reference is not None]
    if reference:
        divergence = kl_per_token(found.logprobs, torch.cat(reference))
        watch.add_kl(divergence)
        if config.kl_corrected:
            divergence = divergence * (found.logprobs - answers.logged).exp()
        loss = loss + config.kl * divergence
    factor = torch.tensor([factor for _, factor in some])[owner]
    return (loss * answers.weights * factor).sum()
