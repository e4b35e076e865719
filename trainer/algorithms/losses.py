"""Losses, advantages and divergences as pure functions of tensors. Log-probabilities are natural logs."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Scale = Literal["group", "batch", "none"]
Aggregation = Literal["grpo", "bnpo", "dr_grpo", "dapo"]


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
    estimates: list[float] = []
    following = running = 0.0
    # As numbers: a tensor operation per token would take a hundred times as long as its arithmetic.
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        running = reward + gamma * following - value + gamma * lam * running
        estimates.append(running)
        following = value
    advantages = torch.tensor(estimates[::-1], dtype=rewards.dtype)
    return advantages, advantages + values.detach()


def kl_rewards(logprobs: Tensor, ref_logprobs: Tensor, score: float, coefficient: float = 0.02) -> Tensor:
    """Per-token reward `-coefficient * (logp - ref_logp)`, `[time]`, the reward model's `score` added to the last."""
    rewards = -coefficient * (logprobs - ref_logprobs)
    rewards[-1] += score
    return rewards


def clipped_surrogate(
    logprobs: Tensor, logged: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """`-min(r A, clamp(r, 1 - clip_low, 1 + clip_high) A)` of each token (arXiv 1707.06347, eq. 7), `[tokens]`.

    The ratio `r = exp(logprobs - logged)` is taken to what the engine recorded when it sampled the token, whichever
    weights it had then.
    """
    ratio = (logprobs - logged).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def ppo_policy_loss(
    logprobs: Tensor, logged: Tensor, advantages: Tensor, clip: float = 0.2, weights: Tensor | None = None
) -> Tensor:
    """Mean of the clipped surrogate over the tokens. `logged` are the log-probabilities the engine recorded."""
    return weighted_mean(clipped_surrogate(logprobs, logged, advantages, clip, clip), weights)


def ppo_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float = 5.0, weights: Tensor | None = None
) -> Tensor:
    """Half the squared error, the worse of the free and the clipped value."""
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    loss = 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())
    return weighted_mean(loss, weights)


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """`exp(d) - 1 - d` with `d = ref - logp`, of tokens sampled from `logprobs`' distribution, `[tokens]`.

    Non-negative, and its mean is unbiased for KL(policy || reference) per token (Schulman's k3 estimator).
    """
    difference = ref_logprobs - logprobs
    return difference.exp() - 1 - difference


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Mean of `kl_per_token`."""
    return kl_per_token(logprobs, ref_logprobs).mean()


def whiten(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Zero mean, unit variance over all tokens of a batch; tokens of weight zero have no say in either."""
    mean = weighted_mean(values, weights)
    deviation = weighted_mean((values - mean).square(), weights).sqrt()
    return (values - mean) / (deviation + 1e-8)


def group_advantages(rewards: Tensor, groups: Tensor, scale: Scale = "group") -> Tensor:
    """Rewards less the mean of their group (arXiv 2402.03300, 4.1.2), `[answers]`.

    `groups` `[answers]` names the prompt of each answer; groups may differ in size, and the only answer of a prompt has
    advantage zero. `scale`: divided by the standard deviation of the "group" (the paper), of the "batch", or by nothing
    ("none": Dr. GRPO, arXiv 2503.20783, prompts that are too easy or too hard weigh no more than others).
    """
    _, group = groups.unique(return_inverse=True)
    count = torch.bincount(group)
    mean = rewards.new_zeros(len(count)).index_add(0, group, rewards) / count
    centred = rewards - mean[group]
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (rewards.std() + 1e-4) if len(rewards) > 1 else centred
    squares = rewards.new_zeros(len(count)).index_add(0, group, centred.square())
    deviation = (squares / (count - 1).clamp_min(1)).sqrt()
    return centred / (deviation[group] + 1e-4)


def answer_factors(lengths: Tensor, kind: Aggregation, limit: Tensor, tokens_per_step: float) -> Tensor:
    """What each answer's summed token losses are multiplied by, so that their sum is the loss of a step, `[answers]`.

    - "grpo": the mean over the answers of their means over tokens (arXiv 2402.03300, eq. 3)
    - "bnpo": the mean over the step's tokens
    - "dr_grpo": sums over `limit`, the most tokens an answer might have had: length has no influence (arXiv 2503.20783)
    - "dapo": sums over `tokens_per_step`, the mean number of tokens of the turn's steps (arXiv 2503.14476, eq. 8)

    `lengths`, `limit`: `[answers]` of the step.
    """
    if kind == "grpo":
        return 1 / (lengths.clamp_min(1) * len(lengths))
    if kind == "bnpo":
        return torch.full_like(limit, 1 / max(float(lengths.sum()), 1.0))
    if kind == "dr_grpo":
        return 1 / (limit * len(lengths))
    return torch.full_like(limit, 1 / max(tokens_per_step, 1.0))
