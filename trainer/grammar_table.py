"""The serving engine's grammar over whole answers: which tokens it allowed at each step, as rows of one table.

A state of the grammar is one row, shared by all answers, and an answer is a vector of row numbers: walking it costs a
step per medium, not per token, and the masks of a batch are one gather.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from anyloop.modality import Modality
from anyloop.sequence import OutputGrammar, SequenceLayout


class GrammarTable:
    """Masks `[states, vocabulary]` bool, one for each state of every set of modalities seen so far."""

    def __init__(self, layout: SequenceLayout, vocabulary: int) -> None:
        """`vocabulary` is the width of the logits, padding included."""
        self._layout = layout
        self._width = max(vocabulary, layout.vocabulary_size)
        self._media = {span.open: modality for modality, span in layout.codes.items()}
        self._every = frozenset({Modality.TEXT, *layout.codes})
        self._masks: list[np.ndarray] = []
        self._table = torch.zeros(0, self._width, dtype=torch.bool)
        self._inside: dict[Modality, tuple[int, int]] = {}  # rows of a medium's codes and of its end
        self._outside: dict[frozenset[Modality], tuple[np.ndarray, np.ndarray]] = {}
        self._longest = max((span.length + 2 for span in layout.codes.values()), default=0)
        every = OutputGrammar(layout, None, self._width)
        every.advance(layout.end)
        for modality, span in layout.codes.items():
            every.advance(span.open)
            codes = self._add(every.mask())
            for _ in range(span.length):
                every.advance(span.begin)
            self._inside[modality] = (codes, self._add(every.mask()))
            every.advance(span.close)

    def rows(self, answer: Sequence[int], modalities: Iterable[Modality] | None = None, limit: int = 0) -> Tensor:
        """The row of each step of `answer`, `[len(answer)]`.

        `modalities` limits the answer (None or empty: all). `limit`: the most tokens it might have had; near it the
        engine opens no medium that would not fit whole. 0: no limit.
        """
        tokens = np.asarray(answer)
        first, after = self._states(frozenset(modalities or self._every))
        left = limit - np.arange(len(tokens)) if limit else np.full(len(tokens), self._longest)
        left = left.clip(0, self._longest)
        rows = after[left]
        rows[:1] = first[left[:1]]
        begin = 0
        for at in np.flatnonzero(np.isin(tokens, list(self._media))):
            if at < begin:  # a code of the medium before
                continue
            modality = self._media[int(tokens[at])]
            codes, close = self._inside[modality]
            begin = int(at) + 1 + self._layout.codes[modality].length
            rows[at + 1 : begin] = codes
            rows[begin : begin + 1] = close
            begin += 1
        return torch.from_numpy(rows)

    def masks(self, rows: Tensor) -> Tensor:
        """`[tokens]` row numbers to `[tokens, vocabulary]` bool, true where the token was allowed."""
        if len(self._table) < len(self._masks):
            self._table = torch.from_numpy(np.stack(self._masks))
        return self._table[rows]

    def _states(self, allowed: frozenset[Modality]) -> tuple[np.ndarray, np.ndarray]:
        """The rows outside of media, of the first token and of later ones, by tokens left `[longest medium + 1]`."""
        if allowed not in self._outside:
            first, after = [], []
            for left in range(self._longest + 1):
                fitting = [m for m in allowed if m is Modality.TEXT or self._layout.codes[m].length + 2 <= left]
                grammar = OutputGrammar(self._layout, fitting, self._width)
                first.append(self._add(grammar.mask()))
                grammar.advance(self._layout.end)
                after.append(self._add(grammar.mask()))
            self._outside[allowed] = np.asarray(first), np.asarray(after)
        return self._outside[allowed]

    def _add(self, mask: np.ndarray) -> int:
        for row, known in enumerate(self._masks):
            if np.array_equal(known, mask):
                return row
        self._masks.append(mask.copy())
        return len(self._masks) - 1
