"""What the engine asks of a model, whatever runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

Dtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ForwardOptions:
    length: int = 0  # longest sequence in tokens; 0: what the model was made for
    dtype: Dtype = "float32"  # of the weight matrices; activations and the KV cache are float32
    compile: bool = False  # torch.compile on the parts of a layer around attention


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `[start, start + len(tokens))` of the sequence in cache row `row`; all before `start` has been read."""

    row: int
    start: int
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class ScoreMasks:
    """What may follow where: tokens 1 .. n-1 of sequence i are scored under rows `rows[i]` of `table`, which are added
    to the logits."""

    table: torch.Tensor  # [masks, vocabulary], 0 or -inf
    rows: list[list[int]]


class Unsupported(Exception):
    """The model cannot run in this way; the reason is the message."""


def longest(config: Any, options: ForwardOptions) -> int:
    """Tokens that a sequence may have: what is asked for, within what the model was made for."""
    limit = getattr(config, "max_position_embeddings", None) or options.length or 4096
    return min(options.length or limit, limit)


class RowCache(Protocol):
    """What the model remembers of each sequence, in rows of fixed length, allocated once."""

    @property
    def nbytes(self) -> int: ...

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` tokens of row `source` also stand in row `target`."""
        ...

    def clear(self, row: int, start: int = 0) -> None:
        """Zeros from token `start` on: what is masked out is multiplied by 0, and 0 times NaN is NaN."""
        ...


class Forward(Protocol):
    """One set of weights, ready to run. Caches are interchangeable between forwards of one kind and shape."""

    kind: str
    max_length: int

    def new_cache(self, rows: int, length: int) -> Any:
        """A RowCache that `read` and `decode` of this kind take."""
        ...

    def read(self, cache: Any, chunks: list[Chunk]) -> None:
        """Computes what the cache keeps of the chunks' tokens; at most one chunk per row."""
        ...

    def decode(self, cache: Any, rows: list[int], tokens: list[int], positions: list[int]) -> torch.Tensor:
        """Reads one token per row at its position; float32 logits `[rows, vocabulary]` of what follows.

        `rows` ascends. The result is the caller's to change.
        """
        ...

    def score(self, sequences: list[list[int]], masks: ScoreMasks | None = None) -> list[torch.Tensor]:
        """Per sequence of n tokens, the float32 log-probabilities `[n - 1]` of tokens 1 .. n-1. Touches no cache."""
        ...
