"""The KV cache of models that run by transformers' own forward: the engine's rows, seen as a transformers `Cache`.

`plan` says, before a forward, which rows it writes and reads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from services.policy.engine.forward.key_values import row_view


class _Plan:
    """Which rows and columns the next forward uses; shared by all layers."""

    def __init__(self) -> None:
        self.view: slice | torch.Tensor = slice(0, 0)
        self.rows = torch.empty(0, dtype=torch.long)  # [batch, 1]
        self.positions = torch.empty(0, dtype=torch.long)  # [batch, tokens]
        self.width = 0  # columns that the forward reads


class _Layer(CacheLayerMixin):
    """Keys and values `[rows, heads, length, head_dim]` of one layer, allocated when a forward shows the shape."""

    def __init__(self, plan: _Plan, rows: int, length: int) -> None:
        super().__init__()
        self._plan = plan
        self._rows = rows
        self._length = length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        with torch.inference_mode(False):  # rows are also copied between steps, outside of inference mode
            self.keys, self.values = (
                torch.zeros(self._rows, states.shape[1], self._length, states.shape[3], dtype=states.dtype)
                for states in (key_states, value_states)
            )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.blocks()
        plan = self._plan
        keys[plan.rows, :, plan.positions] = key_states.transpose(1, 2)
        values[plan.rows, :, plan.positions] = value_states.transpose(1, 2)
        return keys[plan.view][:, :, : plan.width], values[plan.view][:, :, : plan.width]

    def blocks(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._plan.width, 0

    def get_seq_length(self) -> int:
        return self._plan.width - self._plan.positions.shape[-1]

    def get_max_length(self) -> int:
        return self._length


class SlotCache(Cache):
    def __init__(self, layers: int, rows: int, length: int) -> None:
        self._plan = _Plan()
        self._slot_layers = [_Layer(self._plan, rows, length) for _ in range(layers)]
        super().__init__(layers=list(self._slot_layers))

    @property
    def nbytes(self) -> int:
        """0 until a forward has shown the shape."""
        return sum(block.nbytes for layer in self._slot_layers if layer.is_initialized for block in layer.blocks())

    def plan(self, rows: list[int], positions: torch.Tensor, width: int) -> None:
        """The next forward writes at `positions` `[len(rows), tokens]` of these rows and reads columns `[0, width)`."""
        self._plan.rows = torch.tensor(rows)[:, None]
        self._plan.view = row_view(rows)
        self._plan.positions = positions
        self._plan.width = width

    def copy(self, source: int, target: int, length: int) -> None:
        for layer in self._slot_layers:
            for block in layer.blocks() if layer.is_initialized else ():  # some layers use what others keep
                block[target, :, :length] = block[source, :, :length]

    def clear(self, row: int, start: int = 0) -> None:
        for layer in self._slot_layers:
            for block in layer.blocks() if layer.is_initialized else ():
                block[row, :, start:] = 0.0
