"""Where each kind of token lives in the vocabulary.

Text tokens come first, `[0, text_tokens)`, then the special tokens, then one range of codes per modality. Special
tokens are not known to the text tokenizer, so no text that a client sends can ever become one.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from anyloop.modality import MEDIA_MODALITIES, Modality

LAYOUT_FILE = "sequence.json"
SPECIALS = ("bos", "end", "system", "user", "assistant")


class LayoutError(ValueError):
    """A layout file or a token sequence does not fit the vocabulary."""


@dataclass(frozen=True)
class CodeRange:
    """Codes of one modality: ids `[begin, begin + size)`, always `length` of them between `open` and `close`."""

    begin: int
    size: int
    length: int
    open: int
    close: int


@dataclass(frozen=True)
class SequenceLayout:
    text_tokens: int
    codes: dict[Modality, CodeRange] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at = self.text_tokens + len(SPECIALS)
        for modality in self.codes:
            span = self.codes[modality]
            if (span.open, span.close, span.begin) != (at, at + 1, at + 2) or span.size < 1 or span.length < 1:
                raise LayoutError(
                    f"code range of {modality} does not follow the token before it; expected open id {at}"
                )
            at = span.begin + span.size

    @classmethod
    def build(cls, text_tokens: int, codes: dict[Modality, tuple[int, int]]) -> "SequenceLayout":
        """Lays out `codes` = modality -> (codebook size, codes per medium) behind the text tokens."""
        at = text_tokens + len(SPECIALS)
        ranges = {}
        for modality in MEDIA_MODALITIES:
            if modality in codes:
                size, length = codes[modality]
                ranges[modality] = CodeRange(begin=at + 2, size=size, length=length, open=at, close=at + 1)
                at += 2 + size
        return cls(text_tokens, ranges)

    @property
    def vocabulary_size(self) -> int:
        return self.text_tokens + len(SPECIALS) + sum(2 + span.size for span in self.codes.values())

    def special(self, name: str) -> int:
        return self.text_tokens + SPECIALS.index(name)

    @property
    def end(self) -> int:
        """The token that closes a turn and ends generation."""
        return self.special("end")

    def modality_of(self, token: int) -> Modality | None:
        """The modality whose code `token` is; TEXT for a text token; None for specials and delimiters."""
        if token < self.text_tokens:
            return Modality.TEXT
        for modality, span in self.codes.items():
            if span.begin <= token < span.begin + span.size:
                return modality
        return None

    def save(self, directory: Path) -> None:
        data = {
            "text_tokens": self.text_tokens,
            "codes": {str(m): {"size": s.size, "length": s.length} for m, s in self.codes.items()},
        }
        (directory / LAYOUT_FILE).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "SequenceLayout":
        """Raises LayoutError when the file is missing or not a layout."""
        path = Path(directory) / LAYOUT_FILE
        try:
            data = json.loads(path.read_text())
            codes = {Modality(m): (int(c["size"]), int(c["length"])) for m, c in data["codes"].items()}
            return cls.build(int(data["text_tokens"]), codes)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise LayoutError(f"cannot read the sequence layout {path}: {error}") from error
