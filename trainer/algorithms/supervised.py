"""The parts that every training loop shares: a step over sequences, and a mean loss without gradient."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainer.answer_model import token_logprobs
from trainer.batches import collate, group_by_length
from trainer.engine import Engine
from trainer.examples import Example


def sft_micro_losses(
    engine: Engine, examples: Sequence[Example], weights: Sequence[float], total_tokens: float, batch_tokens: int
) -> list[Callable[[], Tensor]]:
    """Parts that add up to the cross-entropy per answer token, `total_tokens` being the step's over all processes."""

    def part(group: list[int]) -> Tensor:
        batch = collate([examples[i].sequence for i in group])
        weight = torch.tensor([weights[i] * examples[i].weight for i in group])[batch.owner]
        return -(token_logprobs(engine.module, batch) * weight).sum() / total_tokens

    groups = group_by_length([len(example.sequence) for example in examples], batch_tokens)
    return [lambda group=group: part(group) for group in groups]  # type: ignore[misc]


def answer_tokens(examples: Sequence[Example]) -> float:
    """Weighted number of answer tokens: what a loss per token is divided by."""
    return max(sum(len(example.sequence.answer) * example.weight for example in examples), 1e-8)


def typical_weight(weights: Sequence[float]) -> float:
    """What an example of a whole training call weighs on average. Steps are divided by this times their size, not by
    their own weights: a step of examples that count little is a small step, and does not make up for it."""
    return max(sum(weights) / max(len(weights), 1), 1e-8)


@torch.no_grad()
def mean_loss(module: nn.Module, examples: Sequence[Example], batch_tokens: int) -> float:
    """Cross-entropy per answer token over `examples`; NaN when there are none."""
    total, count = 0.0, 0
    for group in group_by_length([len(example.sequence) for example in examples], batch_tokens):
        logprobs = token_logprobs(module, collate([examples[i].sequence for i in group]))
        total -= float(logprobs.sum())
        count += len(logprobs)
    return total / count if count else float("nan")
