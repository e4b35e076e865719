"""Keys and values of every row, one preallocated block per layer."""

from __future__ import annotations

import torch


class KeyValueCache:
    """Per layer, keys and values `[rows, key-value heads, length, head dimension]` in float32."""

    def __init__(self, layers: int, rows: int, heads: int, length: int, dimension: int) -> None:
        shape = (rows, heads, length, dimension)
        with torch.inference_mode(False):  # rows are also copied between steps, outside of inference mode
            self.keys = [torch.zeros(shape, dtype=torch.float32) for _ in range(layers)]
            self.values = [torch.zeros(shape, dtype=torch.float32) for _ in range(layers)]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def copy(self, source: int, target: int, length: int) -> None:
        for block in (*self.keys, *self.values):
            block[target, :, :length] = block[source, :, :length]

    def clear(self, row: int, start: int = 0) -> None:
        for block in (*self.keys, *self.values):
            block[row, :, start:] = 0.0


def row_view(rows: list[int]) -> slice | torch.Tensor:
    """Ascending rows as an index: a slice where they stand side by side, for that is a view and copies nothing."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return slice(rows[0], rows[-1] + 1)
    return torch.tensor(rows)
