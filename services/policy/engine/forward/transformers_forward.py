"""Any causal LM of transformers that keeps keys and values, by its own forward on the engine's cache."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from services.policy.engine.forward.interface import Chunk, ForwardOptions, ScoreMasks, Unsupported, longest
from services.policy.engine.forward.masks import additive, window_of
from services.policy.engine.forward.slot_cache import SlotCache


class TransformersForward:
    kind = "transformers"

    def __init__(self, model: PreTrainedModel, options: ForwardOptions) -> None:
        self._model = model
        config = model.config.get_text_config()
        unknown = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if unknown or "local" in (getattr(config, "attention_layers", None) or ()):
            raise Unsupported(f"its attention is of kinds that the cache does not know: {', '.join(sorted(unknown))}")
        self._layers: int = config.num_hidden_layers
        self._window = window_of(config)
        self._mixed = len(set(getattr(config, "layer_types", None) or ())) > 1
        self.max_length = longest(config, options)

    def new_cache(self, rows: int, length: int) -> SlotCache:
        cache = SlotCache(self._layers, rows, length)
        self.read(cache, [Chunk(0, 0, [0, 0])])  # a forward shows the shapes, so that memory is taken now or never
        return cache

    def read(self, cache: SlotCache, chunks: list[Chunk]) -> None:
        by_start: dict[int, list[Chunk]] = {}
        for chunk in sorted(chunks, key=lambda chunk: chunk.row):
            by_start.setdefault(chunk.start, []).append(chunk)
        for start, group in by_start.items():
            # Padding stands on the right, behind everything that attends; the tokens to come overwrite it.
            longest = max(len(chunk.tokens) for chunk in group)
            padded = [chunk.tokens + [0] * (longest - len(chunk.tokens)) for chunk in group]
            self._forward(cache, [chunk.row for chunk in group], padded, [start] * len(group), logits=1)

    def decode(self, cache: SlotCache, rows: list[int], tokens: list[int], positions: list[int]) -> torch.Tensor:
        return self._forward(cache, rows, [[token] for token in tokens], positions)[:, -1].float()

    def score(self, sequences: list[list[int]], masks: ScoreMasks | None = None) -> list[torch.Tensor]:
        return score_padded(self._model, sequences, masks)

    @torch.inference_mode()
    def _forward(
        self, cache: SlotCache, rows: list[int], tokens: list[list[int]], starts: list[int], logits: int = 0
    ) -> torch.Tensor:
        count = len(tokens[0])
        positions = torch.tensor(starts)[:, None] + torch.arange(count)
        width = max(starts) + count
        cache.plan(rows, positions, width)
        result: torch.Tensor = self._model(
            input_ids=torch.tensor(tokens),
            attention_mask=self._masks(positions, width),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=logits,
        ).logits
        return result

    def _masks(self, positions: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
        full = additive(positions, width)[:, None]
        if not self._window:
            return full
        sliding = additive(positions, width, self._window)[:, None]
        return {"full_attention": full, "sliding_attention": sliding} if self._mixed else sliding


@torch.inference_mode()
def score_padded(
    model: PreTrainedModel, sequences: list[list[int]], masks: ScoreMasks | None = None
) -> list[torch.Tensor]:
    """`Forward.score` in one padded batch; padding on the right is out of sight of a causal model."""
    longest = max(len(sequence) for sequence in sequences)
    padded = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences])
    logits: Any = model(input_ids=padded, use_cache=False).logits.float()
    logits, following = logits[:, :-1], padded[:, 1:, None]
    if masks is not None:
        for row, mask_rows in zip(logits, masks.rows, strict=True):
            row[: len(mask_rows)] += masks.table[mask_rows]
    scores = logits.gather(-1, following)[..., 0] - logits.logsumexp(-1)
    return [row[: len(sequence) - 1].clone() for row, sequence in zip(scores, sequences, strict=True)]
