"""Which token may come next, so that an answer is always well formed.

A code span has exactly its length and is closed; only allowed modalities open; role tokens never appear in an answer.
"""

from collections.abc import Iterable

import numpy as np

from anyloop.modality import Modality
from anyloop.sequence.layout import SequenceLayout


class OutputGrammar:
    """The state of one answer. `mask()` before each sampling step, `advance(token)` after it."""

    def __init__(
        self, layout: SequenceLayout, modalities: Iterable[Modality] | None = None, vocabulary: int = 0
    ) -> None:
        """`modalities` limits the answer (None: all); `vocabulary` is the width of the logits, padding included."""
        self._layout = layout
        width = max(vocabulary, layout.vocabulary_size)
        allowed = set(modalities) if modalities is not None else {Modality.TEXT, *layout.codes}
        self._outside = np.zeros(width, dtype=bool)
        if Modality.TEXT in allowed:
            self._outside[: layout.text_tokens] = True
        for modality, span in layout.codes.items():
            if modality in allowed:
                self._outside[span.open] = True
        self._outside[layout.end] = True
        self._begin = self._outside.copy()
        self._begin[layout.end] = False  # an answer says something
        self._inside: dict[Modality, np.ndarray] = {}
        self._close: dict[Modality, np.ndarray] = {}
        for modality, span in layout.codes.items():
            self._inside[modality] = np.zeros(width, dtype=bool)
            self._inside[modality][span.begin : span.begin + span.size] = True
            self._close[modality] = np.zeros(width, dtype=bool)
            self._close[modality][span.close] = True
        self._open = {span.open: modality for modality, span in layout.codes.items()}
        self._span: Modality | None = None
        self._left = 0
        self._empty = True

    @property
    def tokens_to_close(self) -> int:
        """Tokens still needed to close the open code span; 0 outside of one."""
        return self._left + 1 if self._span is not None else 0

    def mask(self) -> np.ndarray:
        """`[vocabulary]` bool, true where the token may come next. The array is shared: do not write to it."""
        if self._span is None:
            return self._begin if self._empty else self._outside
        return self._inside[self._span] if self._left else self._close[self._span]

    def advance(self, token: int) -> None:
        self._empty = False
        if self._span is None:
            self._span = self._open.get(token)
            self._left = self._layout.codes[self._span].length if self._span is not None else 0
        elif self._left:
            self._left -= 1
        else:
            self._span = None
