"""Losses, advantages and divergences as pure functions of tensors. Log-probabilities are natural logs."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of `values`, weighted; zero when all weights are zero."""
    if weights is None:
        return values.mean()
    return (values * weights).sum() / weights.sum().clamp_min(1e-8)


def sft_loss(token_logprobs: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy per answer token, `L = -E[log P(c | x, y)]`. `token_logprobs`, `weights`: `[tokens]`."""
    return weighted_mean(-token_logprobs, weights)


def dpo_margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """`beta * ((chosen - ref_chosen) - (rejected - ref_rejected))`, of summed answer log-probabilities, `[pairs]`."""
    return beta * ((chosen - ref_chosen) - (rejected - ref_rejected))


def dpo_loss(margin: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0) -> Tensor:
    """`-log sigmoid(margin)` (arXiv 2305.18290, eq. 7).

    `label_smoothing` is the assumed share of flipped pairs (conservative DPO).
    """
    loss = -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)
    return weighted_mean(loss, weights)


def reward_loss(
    chosen: Tensor, rejected: Tensor, weights: Tensor | None = None, regularisation: float = 0.001
) -> Tensor:
    """`-log sigmoid(r_w - r_l) + regularisation * mean(r^2)`; scores `[pairs]`."""
    pairwise = weighted_mean(-logsigmoid(chosen - rejected), weights)
    return pairwise + regularisation * weighted_mean((chosen.square() + rejected.square()) / 2, weights)


def gae(rewards: Tensor, values: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation of one finished episode (arXiv 1506.02438, eq. 16).

    `rewards`, `values`: `[time]`, `values[t]` being the state before action `t`; the value after the last action is 0.
    Returns `(advantages, returns)`, each `[time]`, without gradient.
    """
    rewards, values = rewards.detach(), values.detach()
    advantages = torch.zeros_like(rewards)
    following, running = rewards.new_zeros(()), rewards.new_zeros(())
    for t in range(len(rewards) - 1, -1, -1):
        running = rewards[t] + gamma * following - values[t] + gamma * lam * running
        advantages[t] = running
        following = values[t]
    return advantages, advantages + values


def kl_rewards(logprobs: Tensor, ref_logprobs: Tensor, score: float, coefficient: float = 0.02) -> Tensor:
    """Per-token reward `-coefficient * (logp - ref_logp)`, `[time]`, the reward model's `score` added to the last."""
    rewards = -coefficient * (logprobs - ref_logprobs)
    rewards[-1] += score
    return rewards


def ppo_policy_loss(
    logprobs: Tensor, logged: Tensor, advantages: Tensor, clip: float = 0.2, weights: Tensor | None = None
) -> Tensor:
    """Clipped surrogate (arXiv 1707.06347, eq. 7). `logged` are the log-probabilities the sampling engine recorded."""
    ratio = (logprobs - logged).exp()
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return weighted_mean(-surrogate, weights)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 5.0, weights: Tensor | None = None
) -> Tensor:
    """Half the squared error, the worse of the free and the clipped value."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    loss = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    return weighted_mean(loss, weights)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Mean of `exp(d) - 1 - d` with `d = ref - logp`, over tokens sampled from `logprobs`' distribution.

    Non-negative and unbiased for KL(policy || reference) per token (Schulman's k3 estimator).
    """
    difference = ref_logprobs - logprobs
    return (difference.exp() - 1 - difference).mean()


def whiten(values: Tensor) -> Tensor:
    """Zero mean, unit variance over all tokens of a batch."""
    return (values - values.mean()) / (values.std(unbiased=False) + 1e-8)
