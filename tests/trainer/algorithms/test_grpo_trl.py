"""Our GRPO step beside TRL 1.16's GRPOTrainer: the same answers, the same tiny Llama in fp32, loss and every gradient.

What agrees (up to the order of sums): the four aggregations grpo, bnpo, dr_grpo and dapo, the two-sided clipping, the
k3 KL to the reference, and advantages by group, by batch and unscaled. What differs: TRL takes its aggregations "bnpo"
and "grpo" over each micro-batch and averages them, ours are over the whole step, however it is cut (`test_parts...`);
our ratios are taken to what the engine logged, TRL's (`old_per_token_logps`) to what the trainer computes. Weights per
token (staleness) and the grammar are ours alone; with weights of 1 and free text they change nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.algorithms.trl_peer import (
    COMMON,
    Measured,
    agree,
    draw,
    left_padded,
    llama,
    quiet,
    right_padded,
    tokenizer,
)
from trainer.algorithms.grpo import GRPOConfig, GRPOTraining, collect, update
from trainer.algorithms.losses import group_advantages
from trainer.algorithms.rollout import Rollout, Span
from trainer.answer_model import AnswerModel, score_sequences
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing

ATOL = 1e-6  # of losses and gradients in fp32; the largest gradients are about 0.1
LIMIT = 12
REWARDS = [1.0, 0.0, 0.5, 0.2, 0.9, 0.9]
OPTIM = OptimConfig(clip_norm=1e9)  # TRL clips between the loss and the step, after what is compared here


def rollouts() -> list[Rollout]:
    """Two prompts of unequal length with three answers each; what was logged is off by enough to be clipped."""
    generator = torch.Generator().manual_seed(5)
    prompts = [draw(4, generator), draw(9, generator)]
    answers = [(*draw(length, generator), 2) for length in (3, 7, 1, 5, 2, 6)]
    asked = [Rollout(prompts[i // 3], answer, (0.0,) * len(answer), group=i // 3) for i, answer in enumerate(answers)]
    own = score_sequences(AnswerModel(llama(0)), [one.sequence for one in asked], 4096)
    noise = [0.5 * torch.randn(len(row), generator=generator) for row in own]
    return [
        replace(one, logprobs=tuple((row + off).tolist()), limit=LIMIT)
        for one, row, off in zip(asked, own, noise, strict=True)
    ]


def ours(config: GRPOConfig, some: Sequence[Rollout], optim: OptimConfig = OPTIM) -> Measured:
    policy = AnswerModel(llama(0))
    engine = open_engine(policy, 1e-6, 1, optim, World())  # a step leaves its gradients where they are
    reference = AnswerModel(llama(1)) if config.kl else None
    sharing = prove_sharing(policy, optim.shared_prefix)
    learner = GRPOTraining(engine, reference, lambda sequences: REWARDS, None, sharing, config, optim, World())
    experience, _ = collect(learner, some)
    found = update(learner, experience, [], 0)
    return Measured.of(found["policy_loss"], policy.lm)


@pytest.fixture
def trl() -> Iterator[Any]:
    yield from quiet("trl")


def theirs(trl: Any, folder: Path, some: Sequence[Rollout], **settings: Any) -> Measured:
    from datasets import Dataset

    beta = settings.pop("beta", 0.0)
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(some),
        num_generations=3,
        max_completion_length=LIMIT,
        **COMMON,
        **settings,
    )
    policy = llama(0)
    trainer = trl.GRPOTrainer(
        policy,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": " <5>"}] * 6),
        processing_class=tokenizer(),
    )
    trainer.beta = beta  # set before, TRL would load a reference by name; its log-probabilities are given below
    policy.eval()  # TRL divides by its accumulation steps in training mode only
    prompt_ids, prompt_mask = left_padded([one.prompt for one in some])
    completion_ids, completion_mask = right_padded([one.answer for one in some])
    logged, _ = right_padded([one.logprobs for one in some])
    reference = score_sequences(AnswerModel(llama(1)), [one.sequence for one in some], 4096)
    rewards = torch.tensor(REWARDS).view(2, 3)
    centred = rewards - rewards.mean(1, keepdim=True)
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": (centred / (rewards.std(1, keepdim=True) + 1e-4)).flatten(),
        "old_per_token_logps": logged,
        "ref_per_token_logps": right_padded([row.tolist() for row in reference])[0],
        "num_items_in_batch": completion_mask.sum(),
    }
    loss = trainer._compute_loss(policy, inputs)
    loss.backward()
    return Measured.of(float(loss), policy)


CASES: list[tuple[str, GRPOConfig, dict[str, Any]]] = [
    *((kind, GRPOConfig(loss=kind), {"loss_type": kind}) for kind in ("grpo", "bnpo", "dr_grpo", "dapo")),
    ("kl", GRPOConfig(loss="grpo", kl=0.3), {"loss_type": "grpo", "beta": 0.3}),
    (
        "kl_plain",
        GRPOConfig(loss="grpo", kl=0.3, kl_corrected=False),
        {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": False},
    ),
    (
        "clip_high",
        GRPOConfig(loss="bnpo", clip_low=0.1, clip_high=0.28),
        {"loss_type": "bnpo", "epsilon": 0.1, "epsilon_high": 0.28},
    ),
]


@pytest.mark.parametrize(("config", "settings"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_loss_and_gradients_are_those_of_trl(
    trl: Any, tmp_path: Path, config: GRPOConfig, settings: dict[str, Any]
) -> None:
    agree(ours(config, rollouts()), theirs(trl, tmp_path, rollouts(), **settings), ATOL)


@pytest.mark.parametrize("kind", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_parts_of_a_step_add_up_to_the_whole(kind: Any) -> None:
    whole = ours(GRPOConfig(loss=kind, kl=0.1), rollouts())
    agree(ours(GRPOConfig(loss=kind, kl=0.1), rollouts(), replace(OPTIM, batch_tokens=20)), whole, ATOL)


def test_prompts_computed_once_per_group_change_nothing() -> None:
    apart = ours(GRPOConfig(kl=0.1), rollouts(), replace(OPTIM, shared_prefix="off"))
    agree(ours(GRPOConfig(kl=0.1), rollouts()), apart, ATOL)


def test_tokens_of_weight_zero_teach_nothing() -> None:
    """Advantages are the same in both: the rewards are of whole answers."""
    some = rollouts()
    stale = Span("old", 0, 2, behind=9, weight=0.0), Span("new", 2, len(some[1].answer))
    noisy = (-9.0, -9.0, *some[1].logprobs[2:])
    config = GRPOConfig(loss="bnpo")
    found = ours(config, [some[0], replace(some[1], spans=stale), *some[2:]])
    again = ours(config, [some[0], replace(some[1], spans=stale, logprobs=noisy), *some[2:]])
    agree(found, again, ATOL)
    everything = ours(config, some)
    assert abs(found.loss - everything.loss) > 1e-3


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_those_of_trl(trl: Any, scale: Any) -> None:
    from trl.trainer.utils import nanstd

    rewards = torch.tensor(REWARDS).view(-1, 3)
    expected = rewards - rewards.mean(1, keepdim=True)
    if scale != "none":
        spread = nanstd(rewards, dim=1)[:, None] if scale == "group" else nanstd(rewards)
        expected = expected / (spread + 1e-4)
    found = group_advantages(torch.tensor(REWARDS), torch.tensor([7, 7, 7, 3, 3, 3]), scale)
    torch.testing.assert_close(found, expected.flatten(), atol=1e-6, rtol=0)
