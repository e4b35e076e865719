"""The reward model's step beside TRL 1.16's RewardTrainer, in fp32 on the same tiny Llama and head.

The pairwise loss is the same. What differs: our regularisation is on `(r_w^2 + r_l^2) / 2`, each score near zero, as in
arXiv 2412.15838's code; TRL's `center_rewards_coefficient` is on `(r_w + r_l)^2`, their sum near zero. Our head has a
bias, which no pairwise loss moves.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from tests.trainer.algorithms.trl_peer import (
    COMMON,
    CONFIG,
    Measured,
    agree,
    draw,
    llama,
    quiet,
    right_padded,
    tokenizer,
)
from trainer.algorithms.reward_model import pair_loss
from trainer.answer_model import ScalarModel
from trainer.batches import TokenSequence
from trainer.shared_prefix import group_pairs

ATOL = 1e-6


@pytest.fixture
def trl() -> Iterator[Any]:
    yield from quiet("trl")


def sequences() -> list[TokenSequence]:
    """chosen, rejected, chosen, ..."""
    generator = torch.Generator().manual_seed(4)
    prompts = [draw(3 + i, generator) for i in range(3)]
    return [TokenSequence(prompts[i // 2], (*draw(1 + (5 * i) % 7, generator), 2)) for i in range(6)]


def head() -> torch.Tensor:
    return 0.3 * torch.randn(1, CONFIG["hidden_size"], generator=torch.Generator().manual_seed(9))


def ours(max_tokens: int) -> Measured:
    module = ScalarModel(llama(0))
    module.head.weight.data.copy_(head())
    everything, weights, loss = sequences(), torch.ones(3), 0.0
    for group in group_pairs(everything, max_tokens, None):
        part = pair_loss(module, group, everything, weights, 3.0, 0.0)
        part.backward()
        loss += float(part.detach())
    found = Measured.of(loss, module.backbone)
    return Measured(loss, found.gradients | {"score": module.head.weight.grad})


def theirs(trl: Any, folder: Path) -> Measured:
    from datasets import Dataset

    model = LlamaForSequenceClassification(LlamaConfig(**CONFIG, num_labels=1)).eval()
    model.model.load_state_dict(llama(0).model.state_dict())
    model.score.weight.data.copy_(head())
    trainer = trl.RewardTrainer(
        model,
        args=trl.RewardConfig(output_dir=str(folder), max_length=None, **COMMON),
        train_dataset=Dataset.from_list([{"chosen": " <5>", "rejected": " <6>"}]),
        processing_class=tokenizer(),
    )
    rows = [sequence.prompt + sequence.answer for sequence in sequences()]
    ids, mask = right_padded(rows[0::2] + rows[1::2])
    model.eval()
    loss = trainer.compute_loss(model, {"input_ids": ids, "attention_mask": mask})
    loss.backward()
    found = Measured.of(float(loss), model.model)
    return Measured(float(loss), found.gradients | {"score": model.score.weight.grad})


@pytest.mark.parametrize("max_tokens", [4096, 30])
def test_loss_and_gradients_are_those_of_trl(trl: Any, tmp_path: Path, max_tokens: int) -> None:
    agree(ours(max_tokens), theirs(trl, tmp_path), ATOL)
