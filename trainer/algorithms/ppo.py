"""Proximal policy optimisation (arXiv 1707.06347) against the reward model, with answers that an engine has logged.

Every turn takes answers of the serving engine, sampled by the actor's current weights, or those that users got and that
are fresh enough, and updates actor and critic. Importance ratios are taken, token by token, against the logged
log-probabilities, under the grammar the engine applied; a token of weights that are too old counts nothing.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from anyloop.sequence import SequenceLayout
from trainer.algorithms.actor import ActorCritic, Answers, Watch, actor_pass, first_and_last
from trainer.algorithms.losses import (
    clipped_surrogate,
    gae,
    kl_estimate,
    kl_rewards,
    ppo_value_loss,
    whiten,
)
from trainer.algorithms.reward_model import Reward, made_of, open_reward, value_model
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
class PPOConfig:
    """The settings with the prefix `ppo_`."""

    source: Literal["engine", "logged", "both"] = "engine"  # answers sampled for training, those users got, or both
    actor_lr: float = 2e-4
    critic_lr: float = 5e-4
    iterations: int = 8  # rollout and update turns per round
    rollouts: int = 256  # answers sampled per turn
    epochs: int = 2  # passes over each turn's rollouts
    batch: int = 32  # rollouts per optimiser step
    kl: float = 0.02  # weight of the per-token reward -(log pi - log pi_ref)
    gamma: float = 1.0  # discount per token
    lambda_: float = 0.95  # of generalised advantage estimation
    whiten: bool = True  # advantages of a turn to mean 0 and variance 1
    clip: float = 0.2  # importance ratios beyond 1 -+ clip earn nothing more
    value_clip: float = 5.0  # a value moves no further than this from the rollout's
    critic: Literal["own", "shared"] = "own"  # a value model of its own, or a head on the actor's backbone
    value_coefficient: float = 0.1  # weight of the value loss where the critic is shared
    sft_coefficient: float = 0.0  # weight of the likelihood of chosen answers beside PPO


@dataclass(frozen=True)
class Experience:
    """A rollout with everything an update needs, each tensor `[tokens]` of its answer."""

    rollout: Rollout
    advantages: Tensor
    returns: Tensor
    values: Tensor


@dataclass
class PPOTraining:
    """Actor and critic (None: the actor's own head), the reference, the reward, and the grammar (None: free text)."""

    actor: Engine
    critic: Engine | None
    reference: AnswerModel
    score: Score
    table: GrammarTable | None
    sharing: Sharing | None
    config: PPOConfig
    optim: OptimConfig
    world: World

    @classmethod
    def open(
        cls,
        world: World,
        checkpoint: Path,
        reference: Path,
        reward: Reward,
        config: PPOConfig,
        optim: OptimConfig,
        planned: Sequence[int] | None = None,
    ) -> "PPOTraining":
        """`planned`: answers per turn; None: `config.rollouts` in each."""
        answers = [config.rollouts] * config.iterations if planned is None else planned
        updates = max(1, sum(steps_in(count, config.batch, config.epochs) for count in answers))
        shared = config.critic == "shared"
        family = ModelFamily(checkpoint, optim, world)
        policy: AnswerModel = family.policy(ActorCritic) if shared else family.policy(AnswerModel)
        table = GrammarTable(SequenceLayout.load(checkpoint), int(policy.lm.config.vocab_size))
        sharing = prove_sharing(policy, optim.shared_prefix)
        critic = None
        if not shared:
            critic = open_engine(value_model(reward, family, optim), config.critic_lr, updates, optim, world)
        actor = open_engine(policy, config.actor_lr, updates, optim, world)
        anchor = family.reference(reference)
        return cls(actor, critic, anchor, open_reward(reward, family, optim), table, sharing, config, optim, world)

    def tensors(self) -> dict[str, Tensor]:
        """The language model's weights, without the head of a shared critic."""
        return lm_tensors({name: one for name, one in self.actor.tensors().items() if name.startswith("lm.")})


@closes_engines
def train_ppo(
    world: World,
    checkpoint: Path,
    reference: Path,
    reward: Reward,
    imitations: list[Example],
    config: PPOConfig,
    optim: OptimConfig,
    saving: SavePoint | None = None,
    planned: Sequence[int] | None = None,
    rollouts: RolloutSource | None = None,
) -> Trained:
    """Continues `checkpoint`. `rollouts` exists on rank 0 only; the others receive what it returns.

    `planned`: how many answers each turn will have, for the rates' schedule; None: `config.rollouts`. Raises
    ServiceError (retriable) where the first turn has none; a later turn without is counted and passed over.
    """
    learner = PPOTraining.open(world, checkpoint, reference, reward, config, optim, planned)
    engines = {"actor": learner.actor} | ({"critic": learner.critic} if learner.critic else {})
    notes = Notes({"history": [], "empty": 0})
    inputs = fingerprint("ppo", checkpoint, reference, *made_of(reward), imitations, config, optim, planned)
    turns = training_steps(engines, range(config.iterations), world, each_step(saving), inputs, notes)
    for turn, _ in turns:
        weights = learner.tensors() if turn else None
        sampled = world.from_rank0(partial(answers_of, rollouts, turn, weights) if rollouts else None)
        if not sampled:
            notes.facts["empty"] += 1
            log.warning("ppo turn %d of %d has no answer to learn from", turn + 1, config.iterations)
            continue
        experience, seen = collect(learner, sampled)
        notes.facts["history"].append(seen | update(learner, experience, imitations, turn))
        log.info("ppo turn %d of %d: %s", turn + 1, config.iterations, notes.facts["history"][-1])
    history: list[dict[str, float]] = notes.facts["history"]
    metrics: dict[str, Any] = {"ppo_turns": len(history), "ppo_empty_turns": notes.facts["empty"]} | first_and_last(
        history, "ppo_"
    )
    metrics["kl"] = metrics.get("ppo_kl_last", 0.0)
    return Trained(learner.tensors(), metrics)


@torch.no_grad()
def collect(learner: PPOTraining, rollouts: Sequence[Rollout]) -> tuple[list[Experience], dict[str, float]]:
    """Scores rollouts and estimates advantages."""
    config = learner.config
    sequences = [rollout.sequence for rollout in rollouts]
    scores = learner.score([rollout.read for rollout in rollouts])
    collected: list[Experience] = []
    divergences = []
    for group in group_answers(sequences, learner.optim.batch_tokens, learner.sharing):
        answers = Answers.of(rollouts, group, learner.table)
        split = answers.batch.split_rows
        own = answers.logged
        if learner.critic is None:
            found = actor_pass(learner.actor.module, answers, values=True)
            assert found.values is not None
            values, own = found.values, found.logprobs
        else:
            values = learner.critic.module(*answers.batch.inputs(answers.batch.index))
            if not bool(answers.current.all()):  # the actor is to stay near the reference, not who sampled
                own = actor_pass(learner.actor.module, answers).logprobs
        ref = actor_pass(learner.reference, answers).logprobs
        for i, value, mine, theirs in zip(group.order, split(values), split(own), split(ref), strict=True):
            advantages, returns = gae(
                kl_rewards(mine, theirs, scores[i], config.kl), value, config.gamma, config.lambda_
            )
            collected.append(Experience(rollouts[i], advantages, returns, value))
            divergences.append(kl_estimate(mine, theirs))
    if config.whiten:
        flat = whiten(
            torch.cat([one.advantages for one in collected]), torch.cat([one.rollout.weights for one in collected])
        )
        white = flat.split([len(one.advantages) for one in collected])
        collected = [replace(one, advantages=advantages) for one, advantages in zip(collected, white, strict=True)]
    return collected, {
        "reward": sum(scores) / len(scores),
        "kl": float(torch.stack(divergences).mean()),
        "length": sum(len(rollout.answer) for rollout in rollouts) / len(rollouts),
    }


def update(
    learner: PPOTraining, experience: Sequence[Experience], imitations: Sequence[Example], turn: int
) -> dict[str, float]:
    """Some epochs over one turn's experience."""
    config, optim = learner.config, learner.optim
    policy_losses, value_losses = [], []
    watch = Watch()
    steps = list(shuffled_steps(len(experience), config.batch, config.epochs, optim.seed + turn))
    for number, step in enumerate(steps):
        chosen = [experience[i] for i in step]
        mine = learner.world.shard(chosen)
        batches = [
            Minibatch.of(mine, group, learner.table, counted_tokens(chosen))
            for group in group_answers([one.rollout.sequence for one, _ in mine], optim.batch_tokens, learner.sharing)
        ]
        parts: list[Callable[[], Tensor]] = [partial(policy_part, learner, one, watch, number == 0) for one in batches]
        liked = list(imitations[number :: len(steps)]) if config.sft_coefficient else []
        if liked:
            shard = learner.world.shard(liked)
            scales = [scale * config.sft_coefficient for _, scale in shard]
            examples = [example for example, _ in shard]
            parts += sft_micro_losses(learner.actor, examples, scales, answer_tokens(liked), optim.batch_tokens)
        policy_losses.append(learner.actor.step(parts))
        if learner.critic is not None:
            value_losses.append(learner.critic.step([partial(value_part, learner, one) for one in batches]))
    found = watch.means()
    found["policy_loss"] = sum(policy_losses) / len(steps)
    return found | ({"value_loss": sum(value_losses) / len(steps)} if value_losses else {})


def counted_tokens(experience: Sequence[Experience]) -> int:
    """Answer tokens that are not too old: what a step's sum is divided by."""
    return max(int(sum((one.rollout.weights > 0).sum() for one in experience)), 1)


@dataclass(frozen=True)
class Minibatch:
    """What fits one forward pass; tensors flat over the answer tokens. `weights` add up to a part of the step's."""

    answers: Answers
    weights: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor

    @classmethod
    def of(
        cls, step: Sequence[tuple[Experience, float]], group: Group, table: GrammarTable | None, tokens: int
    ) -> "Minibatch":
        """The `group` of a `step`: experiences with a weight each, of `tokens` answer tokens together."""
        answers = Answers.of([one.rollout for one, _ in step], group, table)
        some = [step[i] for i in group.order]
        scales = torch.tensor([scale for _, scale in some])[answers.batch.owner]
        advantages, returns, values = (
            torch.cat([getattr(one, name) for one, _ in some]) for name in ("advantages", "returns", "values")
        )
        return cls(answers, answers.weights * scales / tokens, advantages, returns, values)


def policy_part(learner: PPOTraining, part: Minibatch, watch: Watch, first: bool) -> Tensor:
    """This part's share of the clipped surrogate, and of the value loss where the critic is the actor's head.

    `first`: nothing has been updated since the weights were staged.
    """
    config = learner.config
    found = actor_pass(learner.actor.module, part.answers, values=learner.critic is None)
    watch.add(found, part.answers, part.advantages, config.clip, config.clip, first)
    surrogate = clipped_surrogate(found.logprobs, part.answers.logged, part.advantages, config.clip, config.clip)
    loss = (surrogate * part.weights).sum()
    if found.values is None:
        return loss
    return loss + config.value_coefficient * value_loss(found.values, part, config)


def value_part(learner: PPOTraining, part: Minibatch) -> Tensor:
    assert learner.critic is not None
    values = learner.critic.module(*part.answers.batch.inputs(part.answers.batch.index))
    return value_loss(values, part, learner.config)


def value_loss(values: Tensor, part: Minibatch, config: PPOConfig) -> Tensor:
    """This part's share of the clipped value loss."""
    mean = ppo_value_loss(values, part.values, part.returns, config.value_clip, part.weights)
    return mean * part.weights.sum()
