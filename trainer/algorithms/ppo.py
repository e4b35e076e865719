"""Proximal policy optimisation against the reward model, with rollouts from the serving engine.

Every turn stages the actor's current weights on the engine, samples answers pinned to them, and updates actor and
critic. Importance ratios are taken against the log-probabilities that the engine logged, under the grammar it applied.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyloop.modality import Modality
from anyloop.sequence import SequenceLayout
from trainer.algorithms.losses import gae, kl_estimate, kl_rewards, ppo_policy_loss, ppo_value_loss, whiten
from trainer.algorithms.reward_model import reward_scores
from trainer.algorithms.supervised import answer_tokens, sft_micro_losses
from trainer.answer_model import AnswerModel, ScalarModel, grammar_masks, token_logprobs
from trainer.batches import Batch, TokenSequence, collate, group_by_length, shuffled_steps, steps_in
from trainer.distributed import World
from trainer.engine import Engine, open_engine
from trainer.examples import Example
from trainer.optimisation import OptimConfig
from trainer.trained import Trained, lm_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PPOConfig:
    """The settings with the prefix `ppo_`."""

    actor_lr: float = 3e-5
    critic_lr: float = 1e-4
    iterations: int = 3  # rollout and update turns per round
    rollouts: int = 128  # answers sampled per turn
    epochs: int = 2  # passes over each turn's rollouts
    batch: int = 32  # rollouts per optimiser step
    kl: float = 0.02  # weight of the per-token reward -(log pi - log pi_ref)
    gamma: float = 1.0  # discount per token
    lambda_: float = 0.95  # of generalised advantage estimation
    clip: float = 0.2  # importance ratios beyond 1 -+ clip earn nothing more
    value_clip: float = 5.0  # a value moves no further than this from the rollout's
    sft_coefficient: float = 0.0  # weight of the likelihood of chosen answers beside PPO


@dataclass(frozen=True)
class Rollout:
    """An answer sampled for training, with the log-probabilities the engine recorded for its tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    modalities: tuple[Modality, ...] = ()
    limit: int = 0  # the most tokens the answer might have had; 0: unknown

    @property
    def sequence(self) -> TokenSequence:
        return TokenSequence(self.prompt, self.answer)


@dataclass(frozen=True)
class Experience:
    """A rollout with everything an update needs, each tensor `[tokens]` of its answer."""

    rollout: Rollout
    advantages: Tensor
    returns: Tensor
    values: Tensor


RolloutSource = Callable[[int, dict[str, Tensor] | None], list[Rollout]]  # (turn, new weights or None for the start's)
Score = Callable[[Sequence[TokenSequence]], list[float]]


def train_ppo(
    world: World,
    checkpoint: Path,
    reference: Path,
    reward_tensors: dict[str, Tensor],
    imitations: list[Example],
    config: PPOConfig,
    optim: OptimConfig,
    rollouts: RolloutSource | None = None,
) -> Trained:
    """Continues `checkpoint`. `rollouts` exists on rank 0 only; the others receive what it returns."""
    layout = SequenceLayout.load(checkpoint)
    reward_model = ScalarModel.load(checkpoint)
    reward_model.load_state_dict(reward_tensors)
    critic_model = ScalarModel.load(checkpoint)
    critic_model.load_state_dict(reward_tensors)  # a reward model knows what a good end looks like

    def score(sequences: Sequence[TokenSequence]) -> list[float]:
        return reward_scores(reward_model, sequences, optim.batch_tokens)

    updates = config.iterations * steps_in(config.rollouts, config.batch, config.epochs)
    actor = open_engine(AnswerModel.load(checkpoint), config.actor_lr, updates, optim, world)
    critic = open_engine(critic_model, config.critic_lr, updates, optim, world)
    anchor = AnswerModel.load(reference)
    history: list[dict[str, float]] = []
    for turn in range(config.iterations):
        weights = lm_tensors(actor.tensors()) if turn else None
        sampled = world.from_rank0(partial(rollouts, turn, weights) if rollouts else None)
        if not sampled:
            break
        experience, seen = collect(sampled, critic, anchor, score, layout, config, optim)
        history.append(seen | update(actor, critic, experience, imitations, layout, config, optim, world, turn))
        log.info("ppo turn %d of %d: %s", turn + 1, config.iterations, history[-1])
    metrics: dict[str, Any] = {"ppo_turns": len(history)}
    for name in history[0] if history else ():
        metrics[f"ppo_{name}_first"], metrics[f"ppo_{name}_last"] = history[0][name], history[-1][name]
    metrics["kl"] = metrics.get("ppo_kl_last", 0.0)
    return Trained(lm_tensors(actor.tensors()), metrics)


@torch.no_grad()
def collect(
    rollouts: Sequence[Rollout],
    critic: Engine,
    reference: AnswerModel,
    score: Score,
    layout: SequenceLayout,
    config: PPOConfig,
    optim: OptimConfig,
) -> tuple[list[Experience], dict[str, float]]:
    """Scores rollouts and estimates advantages, whitened over all tokens."""
    scores = score([rollout.sequence for rollout in rollouts])
    collected: list[Experience] = []
    divergences = []
    for group in group_by_length([len(rollout.sequence) for rollout in rollouts], optim.batch_tokens):
        chosen = [rollouts[i] for i in group]
        batch = collate([rollout.sequence for rollout in chosen])
        values = batch.split_rows(critic.module(batch.input_ids, batch.index))
        ref = batch.split_rows(token_logprobs(reference, batch, _masks(chosen, layout, reference)))
        for i, rollout, value, ref_logprobs in zip(group, chosen, values, ref, strict=True):
            logged = torch.tensor(rollout.logprobs)
            rewards = kl_rewards(logged, ref_logprobs, scores[i], config.kl)
            advantages, returns = gae(rewards, value, config.gamma, config.lambda_)
            collected.append(Experience(rollout, advantages, returns, value))
            divergences.append(kl_estimate(logged, ref_logprobs))
    flat = whiten(torch.cat([one.advantages for one in collected]))
    white = flat.split([len(one.advantages) for one in collected])
    seen = {
        "reward": sum(scores) / len(scores),
        "kl": float(torch.stack(divergences).mean()),
        "length": sum(len(rollout.answer) for rollout in rollouts) / len(rollouts),
    }
    return [replace(one, advantages=advantages) for one, advantages in zip(collected, white, strict=True)], seen


def update(
    actor: Engine,
    critic: Engine,
    experience: Sequence[Experience],
    imitations: Sequence[Example],
    layout: SequenceLayout,
    config: PPOConfig,
    optim: OptimConfig,
    world: World,
    turn: int,
) -> dict[str, float]:
    """Some epochs over one turn's experience."""
    policy_losses, value_losses, ratios = [], [], []
    steps = list(shuffled_steps(len(experience), config.batch, config.epochs, optim.seed + turn))
    for number, step in enumerate(steps):
        chosen = [experience[i] for i in step]
        mine = world.shard(chosen)
        tokens = max(sum(len(one.rollout.answer) for one in chosen), 1)

        def rows(group: list[int], of: list[tuple[Experience, float]] = mine) -> tuple[Batch, list[Experience], Tensor]:
            some = [of[i][0] for i in group]
            batch = collate([one.rollout.sequence for one in some])
            return batch, some, torch.tensor([of[i][1] for i in group])[batch.owner]

        def policy_part(group: list[int], whole: int = tokens) -> Tensor:
            batch, some, weights = rows(group)
            masks = _masks([one.rollout for one in some], layout, actor.module)
            logprobs = token_logprobs(actor.module, batch, masks)
            logged = torch.cat([torch.tensor(one.rollout.logprobs) for one in some])
            ratios.append(float((logprobs.detach() - logged).exp().mean()))
            advantages = torch.cat([one.advantages for one in some])
            loss = ppo_policy_loss(logprobs, logged, advantages, config.clip, weights)
            return loss * weights.sum() / whole

        def value_part(group: list[int], whole: int = tokens) -> Tensor:
            batch, some, weights = rows(group)
            values = critic.module(batch.input_ids, batch.index)
            old, returns = (torch.cat([getattr(one, name) for one in some]) for name in ("values", "returns"))
            return ppo_value_loss(values, old, returns, config.value_clip, weights) * weights.sum() / whole

        groups = group_by_length([len(one.rollout.sequence) for one, _ in mine], optim.batch_tokens)
        parts: list[Callable[[], Tensor]] = [lambda group=group: policy_part(group) for group in groups]  # type: ignore[misc]
        liked = list(imitations[number :: len(steps)]) if config.sft_coefficient else []
        if liked:
            shard = world.shard(liked)
            scales = [scale * config.sft_coefficient for _, scale in shard]
            examples = [example for example, _ in shard]
            parts += sft_micro_losses(actor, examples, scales, answer_tokens(liked), optim.batch_tokens)
        policy_losses.append(actor.step(parts))
        value_losses.append(critic.step([lambda group=group: value_part(group) for group in groups]))  # type: ignore[misc]
    count = len(steps)
    return {
        "policy_loss": sum(policy_losses) / count,
        "value_loss": sum(value_losses) / count,
        "ratio_first": ratios[0],
        "ratio_last": ratios[-1],
    }


def _masks(rollouts: Sequence[Rollout], layout: SequenceLayout, model: torch.nn.Module) -> Tensor:
    """The engine's grammar at every answer token of `rollouts`, `[tokens, vocabulary]`."""
    width = _vocabulary(model)
    return torch.cat(
        [
            grammar_masks(layout, rollout.answer, rollout.modalities or None, width, rollout.limit)
            for rollout in rollouts
        ]
    )


def _vocabulary(model: torch.nn.Module) -> int:
    lm = getattr(model, "module", model).lm  # DeepSpeed wraps the AnswerModel
    return int(lm.config.vocab_size)
