"""The step of feedback modelling beside TRL 1.16's SFTTrainer (completion-only loss), in fp32 on the same tiny Llama.

Both are the mean over the answer tokens of the whole step. Weights per example are ours alone.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.algorithms.trl_peer import COMMON, Measured, agree, draw, llama, quiet, right_padded, tokenizer
from trainer.algorithms.supervised import answer_tokens, sft_micro_losses
from trainer.answer_model import AnswerModel
from trainer.batches import TokenSequence
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Example
from trainer.optimisation import OptimConfig

ATOL = 1e-6


@pytest.fixture
def trl() -> Iterator[Any]:
    yield from quiet("trl")


def examples() -> list[Example]:
    generator = torch.Generator().manual_seed(2)
    return [Example(TokenSequence(draw(3 + 2 * i, generator), (*draw(6 - i, generator), 2)), str(i)) for i in range(4)]


def ours(batch_tokens: int) -> Measured:
    some, module = examples(), AnswerModel(llama(0))
    engine = open_engine(module, 1e-6, 1, OptimConfig(clip_norm=1e9), World())
    loss = engine.step(sft_micro_losses(engine, some, [1.0] * len(some), answer_tokens(some), batch_tokens))
    return Measured.of(loss, module.lm)


def theirs(trl: Any, folder: Path) -> Measured:
    from datasets import Dataset

    some, policy = examples(), llama(0)
    rows = [{"prompt": " <5>", "completion": " <6>"}] * len(some)
    trainer = trl.SFTTrainer(
        policy,
        args=trl.SFTConfig(output_dir=str(folder), max_length=None, **COMMON),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )
    ids, mask = right_padded([one.sequence.prompt + one.sequence.answer for one in some])
    labels, _ = right_padded([[-100] * len(one.sequence.prompt) + list(one.sequence.answer) for one in some], -100)
    loss = trainer.compute_loss(policy, {"input_ids": ids, "attention_mask": mask, "labels": labels})
    loss.backward()
    return Measured.of(float(loss), policy)


@pytest.mark.parametrize("batch_tokens", [4096, 16])
def test_loss_and_gradients_are_those_of_trl(trl: Any, tmp_path: Path, batch_tokens: int) -> None:
    agree(ours(batch_tokens), theirs(trl, tmp_path), ATOL)
