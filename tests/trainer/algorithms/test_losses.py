"""Expected numbers are derived by hand from the formula beside each."""

import math

import pytest
import torch
from torch import tensor

from trainer.algorithms.losses import (
    answer_factors,
    clipped_surrogate,
    dpo_loss,
    dpo_margin,
    gae,
    group_advantages,
    kl_estimate,
    kl_per_token,
    kl_rewards,
    ppo_policy_loss,
    ppo_value_loss,
    reward_loss,
    sft_loss,
    whiten,
)


def close(value: torch.Tensor, expected: float | list[float]) -> None:
    torch.testing.assert_close(value, tensor(expected), atol=1e-6, rtol=0)


def test_sft_loss_is_the_mean_negative_logprob_and_ignores_tokens_of_weight_zero() -> None:
    logprobs = tensor([-1.0, -2.0, -9.0])
    close(sft_loss(logprobs), 4.0)
    close(sft_loss(logprobs, tensor([1.0, 1.0, 0.0])), 1.5)
    close(sft_loss(logprobs, torch.zeros(3)), 0.0)


def test_dpo_loss_of_a_pair_that_moved_one_nat_each_way() -> None:
    # chosen rose by 1, rejected fell by 1: margin 0.1 * 2; -log sigmoid(0.2) = log(1 + e^-0.2)
    margin = dpo_margin(tensor([-10.0]), tensor([-12.0]), tensor([-11.0]), tensor([-11.0]), beta=0.1)
    close(margin, [0.2])
    close(dpo_loss(margin), 0.598139)
    # smoothing 0.1 mixes in a tenth of log(1 + e^0.2) = 0.798139
    close(dpo_loss(margin, label_smoothing=0.1), 0.618139)


def test_dpo_loss_of_the_reference_itself_is_log_two() -> None:
    close(dpo_loss(torch.zeros(4)), math.log(2))


def test_dpo_loss_weighs_pairs() -> None:
    # log(1 + e^-1) = 0.313262, log(1 + e^1) = 1.313262, weights 3 and 1
    close(dpo_loss(tensor([1.0, -1.0]), tensor([3.0, 1.0])), (3 * 0.313262 + 1.313262) / 4)


def test_reward_loss_is_pairwise_plus_the_mean_square() -> None:
    # log(1 + e^-1) + 0.001 * (1^2 + 0^2) / 2
    close(reward_loss(tensor([1.0]), tensor([0.0])), 0.313262 + 0.0005)


def test_gae_of_three_steps_with_a_reward_at_the_end() -> None:
    # deltas 0.1, 0.1, 0.3; A2 = 0.3, A1 = 0.1 + 0.95 * 0.3, A0 = 0.1 + 0.95 * 0.385
    advantages, returns = gae(tensor([0.0, 0.0, 1.0]), tensor([0.5, 0.6, 0.7]), gamma=1.0, lam=0.95)
    close(advantages, [0.46575, 0.385, 0.3])
    close(returns, [0.96575, 0.985, 1.0])


def test_gae_with_lambda_one_is_the_discounted_return_less_the_value() -> None:
    # 1 + 0.5 * 2 + 0.25 * 4 = 3; 2 + 0.5 * 4 = 4; 4
    advantages, returns = gae(tensor([1.0, 2.0, 4.0]), tensor([0.5, 0.5, 0.5]), gamma=0.5, lam=1.0)
    close(returns, [3.0, 4.0, 4.0])
    close(advantages, [2.5, 3.5, 3.5])


def test_kl_rewards_pay_for_distance_and_give_the_score_at_the_end() -> None:
    # -0.02 * (-1 + 1.5) = -0.01; -0.02 * (-2 + 1) + 2 = 2.02
    close(kl_rewards(tensor([-1.0, -2.0]), tensor([-1.5, -1.0]), 2.0), [-0.01, 2.02])


def test_ppo_policy_loss_clips_gains_but_not_losses() -> None:
    logged = tensor([-2.0])
    risen = logged + math.log(1.5)
    close(ppo_policy_loss(risen, logged, tensor([1.0])), -1.2)  # ratio 1.5 is clipped to 1.2
    close(ppo_policy_loss(risen, logged, tensor([-1.0])), 1.5)  # a bad action that rose is charged in full
    close(ppo_policy_loss(logged, logged, tensor([0.7])), -0.7)


def test_ppo_value_loss_takes_the_worse_of_the_free_and_the_clipped_value() -> None:
    # free (3 - 10)^2 = 49; clipped to 0 + 1: (1 - 10)^2 = 81
    close(ppo_value_loss(tensor([3.0]), tensor([0.0]), tensor([10.0]), clip=1.0), 40.5)
    close(ppo_value_loss(tensor([3.0]), tensor([0.0]), tensor([10.0]), clip=5.0), 24.5)


def test_kl_estimate_is_zero_at_the_reference_and_positive_elsewhere() -> None:
    close(kl_estimate(tensor([-1.0]), tensor([-1.0])), 0.0)
    close(kl_estimate(tensor([-1.0]), tensor([-1.5])), 0.106531)  # e^-0.5 - 1 + 0.5
    assert float(kl_estimate(tensor([-1.0]), tensor([-0.2]))) > 0


def test_whitened_values_have_mean_zero_and_variance_one() -> None:
    white = whiten(tensor([1.0, 2.0, 3.0]))
    close(white, [-1.2247449, 0.0, 1.2247449])  # 1 / sqrt(2/3)


def test_tokens_of_weight_zero_have_no_say_in_whitening() -> None:
    white = whiten(tensor([1.0, 2.0, 3.0, 99.0]), tensor([1.0, 1.0, 1.0, 0.0]))
    close(white[:3], [-1.2247449, 0.0, 1.2247449])


def test_the_surrogate_is_clipped_on_each_side_at_its_own_bound() -> None:
    logged = tensor([-2.0, -2.0])
    ratio = tensor([2.0, 0.5])
    # ratio 2 is clipped to 1.28, ratio 0.5 to 0.8, where the advantage would gain by going on
    close(clipped_surrogate(logged + ratio.log(), logged, tensor([1.0, -1.0]), 0.2, 0.28), [-1.28, 0.8])
    close(clipped_surrogate(logged + ratio.log(), logged, tensor([-1.0, 1.0]), 0.2, 0.28), [2.0, -0.5])


def test_ratios_are_taken_to_what_was_logged_token_by_token() -> None:
    # Weights that gave the first token e^-1 sampled it, others that gave the second e^-3: ratios e^0 and e^0.1
    found = clipped_surrogate(tensor([-1.0, -2.9]), tensor([-1.0, -3.0]), tensor([1.0, 1.0]))
    close(found, [-1.0, -1.105171])


def test_kl_of_each_token_is_the_k3_estimate() -> None:
    close(kl_per_token(tensor([-1.0, -1.0]), tensor([-1.0, -1.5])), [0.0, 0.106531])


def test_advantages_are_within_the_group_by_its_own_spread() -> None:
    # group 0: mean 2, deviation sqrt(2) of (1, 3); group 1: one answer alone; group 2: all the same
    found = group_advantages(tensor([1.0, 3.0, 7.0, 5.0, 5.0]), tensor([0, 0, 1, 2, 2]))
    close(found, [-0.707057, 0.707057, 0.0, 0.0, 0.0])
    close(group_advantages(tensor([1.0, 3.0]), tensor([4, 4]), "none"), [-1.0, 1.0])
    # 4 and 0 in one group, 2 and 2 in the other: the deviation of all four is sqrt(8 / 3)
    close(group_advantages(tensor([4.0, 0.0, 2.0, 2.0]), tensor([0, 0, 1, 1]), "batch"), [1.224670, -1.224670, 0, 0])


def test_what_an_answers_tokens_count_under_each_aggregation() -> None:
    lengths, limits = tensor([1.0, 3.0]), tensor([8.0, 8.0])
    close(answer_factors(lengths, "grpo", limits, 10.0), [1 / 2, 1 / 6])
    close(answer_factors(lengths, "bnpo", limits, 10.0), [1 / 4, 1 / 4])
    close(answer_factors(lengths, "dr_grpo", limits, 10.0), [1 / 16, 1 / 16])
    close(answer_factors(lengths, "dapo", limits, 10.0), [1 / 10, 1 / 10])


def test_losses_reach_the_parameters_that_made_the_logprobs() -> None:
    logprobs = tensor([-1.0, -2.0], requires_grad=True)
    ppo_policy_loss(logprobs, logprobs.detach(), tensor([1.0, -2.0])).backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.5, 1.0])
