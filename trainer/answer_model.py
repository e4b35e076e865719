"""What training needs of a causal LM: logits at chosen positions only, and a scalar head on the same backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trainer.batches import Batch, TokenSequence
from trainer.shared_prefix import Sharing, group_answers
from trainer.tree_forward import hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AnswerModel(nn.Module):
    """A causal LM, projected to the vocabulary only where an answer token is predicted: most positions are prompt."""

    def __init__(self, lm: "PreTrainedModel") -> None:
        super().__init__()
        self.lm = lm

    @classmethod
    def load(cls, checkpoint: Path) -> "AnswerModel":
        """The checkpoint in fp32, in training mode without dropout."""
        return cls(_load_lm(checkpoint))

    def forward(
        self, input_ids: Tensor, index: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """The `inputs` of a Batch to logits `[tokens, vocabulary]` at the places `index`."""
        hidden = hidden_states(self.lm.get_decoder(), input_ids, positions, segments)
        return self.lm.get_output_embeddings()(hidden[index])


class ScalarModel(nn.Module):
    """The backbone of an LM and one number per position: a reward model or a value function."""

    def __init__(self, lm: "PreTrainedModel") -> None:
        super().__init__()
        self.backbone = lm.get_decoder()
        self.head = nn.Linear(lm.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def load(cls, checkpoint: Path) -> "ScalarModel":
        return cls(_load_lm(checkpoint))

    def forward(
        self, input_ids: Tensor, index: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """The `inputs` of a Batch to numbers `[n]` at the places `index`."""
        return self.head(hidden_states(self.backbone, input_ids, positions, segments)[index]).squeeze(-1)


def _load_lm(checkpoint: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM  # settings import the algorithms: they must not wait for this

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)


def token_logprobs(module: nn.Module, batch: Batch, allowed: Tensor | None = None) -> Tensor:
    """Log-probability of every answer token, `[tokens]`.

    `allowed` `[tokens, vocabulary]` restricts the distribution as the serving engine's grammar did, so that importance
    ratios against its logged log-probabilities are exact.
    """
    logits = module(*batch.inputs(batch.index)).float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    # One pass over the vocabulary, and one buffer of its size for the backward pass.
    return -cross_entropy(logits, batch.targets, reduction="none")


@torch.no_grad()
def score_sequences(
    module: nn.Module, sequences: Sequence[TokenSequence], batch_tokens: int, sharing: Sharing | None = None
) -> list[Tensor]:
    """Answer-token log-probabilities of each sequence, in their order."""
    scores: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in group_answers(sequences, batch_tokens, sharing):
        batch = group.collate(sequences)
        for i, row in zip(group.order, batch.split_rows(token_logprobs(module, batch)), strict=True):
            scores[i] = row
    return scores


def stored_names(checkpoint: Path) -> list[str]:
    """The tensor names in `model.safetensors` (a tied output head is not stored twice)."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        return list(file.keys())
