"""Additive attention masks for rows of different length, with and without a sliding window."""

from __future__ import annotations

from typing import Any

import torch

_HIDDEN = torch.finfo(torch.float32).min


def window_of(config: Any) -> int:
    """How far back sliding layers look, in tokens; 0 where no layer slides."""
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not window or (kinds and "sliding_attention" not in kinds):
        return 0
    return int(window)


def slides(config: Any, layer: int) -> bool:
    kinds = getattr(config, "layer_types", None)
    return bool(window_of(config)) and (kinds is None or kinds[layer] == "sliding_attention")


def additive(positions: torch.Tensor, width: int, window: int = 0) -> torch.Tensor:
    """Queries at `positions` `[...]` see the columns `[0, width)` up to their own, at most `window` of them.

    Returns `[..., width]`: 0 where seen, the least float32 elsewhere.
    """
    columns = torch.arange(width)
    hidden = columns > positions[..., None]
    if window:
        hidden |= columns <= positions[..., None] - window
    return torch.zeros(hidden.shape, dtype=torch.float32).masked_fill_(hidden, _HIDDEN)
