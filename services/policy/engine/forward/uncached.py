"""Causal LMs that keep no keys and values in transformers' way (state-space models, hybrids): read whole every step.

Slow, for a step costs as much as reading all sequences, but right for every model, and with everything else that the
engine does: batches that change at every step, sampling, swaps.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from services.policy.engine.forward.interface import Chunk, ForwardOptions, ScoreMasks, longest
from services.policy.engine.forward.transformers_forward import score_padded


class TokenTable:
    """The tokens of every row: all that a model without a cache needs."""

    def __init__(self, rows: int, length: int) -> None:
        self.tokens = torch.zeros(rows, length, dtype=torch.long)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes

    def copy(self, source: int, target: int, length: int) -> None:
        self.tokens[target, :length] = self.tokens[source, :length]


class UncachedForward:
    kind = "uncached"

    def __init__(self, model: PreTrainedModel, options: ForwardOptions) -> None:
        self._model = model
        config = model.config.get_text_config()
        self.max_length = longest(config, options)

    def new_cache(self, rows: int, length: int) -> TokenTable:
        return TokenTable(rows, length)

    def read(self, cache: TokenTable, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            cache.tokens[chunk.row, chunk.start : chunk.start + len(chunk.tokens)] = torch.tensor(chunk.tokens)

    @torch.inference_mode()
    def decode(self, cache: TokenTable, rows: list[int], tokens: list[int], positions: list[int]) -> torch.Tensor:
        at = torch.tensor(positions)
        cache.tokens[torch.tensor(rows), at] = torch.tensor(tokens)
        # What an earlier owner left behind the position stands to the right: a causal model does not see it.
        logits = self._model(input_ids=cache.tokens[rows, : max(positions) + 1], use_cache=False).logits
        last: torch.Tensor = logits[torch.arange(len(rows)), at].float()
        return last

    def score(self, sequences: list[list[int]], masks: ScoreMasks | None = None) -> list[torch.Tensor]:
        return score_padded(self._model, sequences, masks)
