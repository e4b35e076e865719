"""The KV cache: one preallocated block per layer, one row per slot, seen by the model as a transformers `Cache`.

The model's own forward runs on it, so any causal LM class works. `plan_prefill` and `plan_decode` say, before a
forward, which rows it writes and reads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotPlan:
    """Which rows and columns the next forward uses; shared by all layers."""

    def __init__(self) -> None:
        self.rows: slice | torch.Tensor = slice(0, 0)
        self.row_index = torch.empty(0, dtype=torch.long)
        self.positions: torch.Tensor | None = None  # [batch], None while prompts are read
        self.width = 0  # columns that a decode step reads


class SlotLayer(CacheLayerMixin):
    """Keys and values `[slots, heads, length, head_dim]` of one layer, allocated when a forward shows the shape."""

    def __init__(self, plan: SlotPlan, slots: int, length: int) -> None:
        super().__init__()
        self._plan = plan
        self._slots = slots
        self._length = length

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        with torch.inference_mode(False):  # rows also move between steps, outside of inference mode
            self.keys, self.values = (
                torch.zeros(
                    self._slots,
                    states.shape[1],
                    self._length,
                    states.shape[3],
                    dtype=states.dtype,
                    device=states.device,
                )
                for states in (key_states, value_states)
            )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        plan = self._plan
        if plan.positions is None:
            # Prompts start empty rows: attention needs only what was just computed, under the causal mask.
            self.keys[plan.row_index, :, : key_states.shape[2]] = key_states
            self.values[plan.row_index, :, : value_states.shape[2]] = value_states
            return key_states, value_states
        self.keys[plan.row_index, :, plan.positions] = key_states[:, :, 0]
        self.values[plan.row_index, :, plan.positions] = value_states[:, :, 0]
        # A slice of rows is a view; an index copies, which only happens while two versions share the slots.
        return self.keys[plan.rows][:, :, : plan.width], self.values[plan.rows][:, :, : plan.width]

    def move(self, source: int, target: int, length: int) -> None:
        assert self.keys is not None
        assert self.values is not None
        self.keys[target, :, :length] = self.keys[source, :, :length]
        self.values[target, :, :length] = self.values[source, :, :length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return (query_length if self._plan.positions is None else self._plan.width), 0

    def get_seq_length(self) -> int:
        return 0 if self._plan.positions is None else self._plan.width - 1

    def get_max_length(self) -> int:
        return self._length


class SlotCache(Cache):
    def __init__(self, layers: int, slots: int, length: int) -> None:
        self.plan = SlotPlan()
        self.slots = slots
        self.length = length
        self._slot_layers = [SlotLayer(self.plan, slots, length) for _ in range(layers)]
        super().__init__(layers=list(self._slot_layers))

    def plan_prefill(self, rows: list[int]) -> None:
        """The next forward reads whole prompts, `[len(rows), longest]`, padded on the right, into these rows."""
        self.plan.row_index = torch.tensor(rows)
        self.plan.positions = None

    def plan_decode(self, rows: list[int], positions: torch.Tensor, width: int) -> None:
        """The next forward reads one token per row at `positions` and attends to columns `[0, width)`."""
        plan = self.plan
        plan.row_index = torch.tensor(rows)
        contiguous = rows[-1] - rows[0] + 1 == len(rows)  # rows come in ascending order
        plan.rows = slice(rows[0], rows[-1] + 1) if contiguous else plan.row_index
        plan.positions = positions
        plan.width = width

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` columns of a row, so that the rows in use stay side by side."""
        for layer in self._slot_layers:
            layer.move(source, target, length)
