"""Output tokens to text pieces and whole code spans, as they arrive."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from anyloop.modality import Modality
from anyloop.sequence.segments import Codes, Segment

if TYPE_CHECKING:
    from anyloop.sequence.sequencer import Sequencer

_REPLACEMENT = "�"


class SegmentStream:
    """Feed it tokens in any portions; it gives text as soon as it is whole UTF-8, and a medium when its span closes."""

    def __init__(self, sequencer: Sequencer) -> None:
        self._sequencer = sequencer
        self._opens = {span.open: modality for modality, span in sequencer.layout.codes.items()}
        self._text: list[int] = []
        self._codes: list[int] = []
        self._inside: Modality | None = None

    def feed(self, tokens: Iterable[int]) -> list[Segment]:
        """The segments that `tokens` completed. Role and end tokens are passed over."""
        out: list[Segment] = []
        layout = self._sequencer.layout
        for token in tokens:
            if self._inside is not None:
                span = layout.codes[self._inside]
                if token == span.close:
                    if len(self._codes) == span.length:
                        out.append(Codes(self._inside, tuple(self._codes)))
                    self._inside = None
                elif span.begin <= token < span.begin + span.size:
                    self._codes.append(token - span.begin)
            elif token in self._opens:
                out.extend(self._flush())
                self._inside, self._codes = self._opens[token], []
            elif token < layout.text_tokens:
                self._text.append(token)
        # A character may be split over byte-level tokens: hold the tail back until it decodes.
        if self._text and self._inside is None:
            piece = self._sequencer.decode_text(self._text)
            if not piece.endswith(_REPLACEMENT) or len(self._text) > 8:
                self._text = []
                out.append(piece)
        return out

    def finish(self) -> list[Segment]:
        """What is left when the output ends: text held back. An unfinished code span is dropped."""
        return self._flush()

    def _flush(self) -> list[Segment]:
        text, self._text = self._text, []
        return [self._sequencer.decode_text(text)] if text else []
