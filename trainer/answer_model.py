"""What training needs of a causal LM: logits at chosen positions only, and a scalar head on the same backbone."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from torch import Tensor, nn

from anyloop.modality import Modality
from anyloop.sequence import OutputGrammar, SequenceLayout
from trainer.batches import Batch, TokenSequence, collate, group_by_length

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

    def forward(self, input_ids: Tensor, index: Tensor) -> Tensor:
        """`[rows, time]`, flat positions `[tokens]` to logits `[tokens, vocabulary]`."""
        hidden = self.lm.get_decoder()(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.lm.get_output_embeddings()(hidden.flatten(0, 1)[index])


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

    def forward(self, input_ids: Tensor, index: Tensor) -> Tensor:
        """`[rows, time]`, flat positions `[n]` to numbers `[n]`."""
        hidden = self.backbone(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.head(hidden.flatten(0, 1)[index]).squeeze(-1)


def _load_lm(checkpoint: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM  # settings import the algorithms: they must not wait for this

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True)


def token_logprobs(module: nn.Module, batch: Batch, allowed: Tensor | None = None) -> Tensor:
    """Log-probability of every answer token, `[tokens]`.

    `allowed` `[tokens, vocabulary]` restricts the distribution as the serving engine's grammar did, so that importance
    ratios against its logged log-probabilities are exact.
    """
    logits = module(batch.input_ids, batch.index).float()
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    return logits.gather(-1, batch.targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def score_sequences(module: nn.Module, sequences: Sequence[TokenSequence], batch_tokens: int) -> list[Tensor]:
    """Answer-token log-probabilities of each sequence, in their order."""
    scores: list[Tensor] = [torch.empty(0)] * len(sequences)
    for group in group_by_length([len(sequence) for sequence in sequences], batch_tokens):
        batch = collate([sequences[i] for i in group])
        for i, row in zip(group, batch.split_rows(token_logprobs(module, batch)), strict=True):
            scores[i] = row
    return scores


def grammar_masks(
    layout: SequenceLayout,
    answer: Sequence[int],
    modalities: Iterable[Modality] | None,
    vocabulary: int,
    limit: int = 0,
) -> Tensor:
    """Which tokens the serving engine allowed at each step of `answer`, `[len(answer), vocabulary]` bool.

    `limit`: the most tokens the answer might have; near it the engine opens no medium that would not fit. 0: no limit.
    """
    grammar = OutputGrammar(layout, modalities, vocabulary)
    rows = []
    for at, token in enumerate(answer):
        mask = torch.from_numpy(grammar.mask().copy())
        if limit and not grammar.tokens_to_close:
            for span in layout.codes.values():
                if span.length + 2 > limit - at:
                    mask[span.open] = False
        rows.append(mask)
        grammar.advance(token)
    return torch.stack(rows)


def stored_names(checkpoint: Path) -> list[str]:
    """The tensor names in `model.safetensors` (a tied output head is not stored twice)."""
    with safe_open(checkpoint / "model.safetensors", framework="pt") as file:
        return list(file.keys())
