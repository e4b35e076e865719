"""What a turn is made of once media are codes: plain text and code spans, in order."""

from dataclasses import dataclass
from typing import Literal

from anyloop.modality import Modality


@dataclass(frozen=True)
class Codes:
    """One medium as codec codes: `codes[i]` in [0, codebook size of the modality)."""

    modality: Modality
    codes: tuple[int, ...]


Segment = str | Codes


@dataclass(frozen=True)
class Turn:
    role: Literal["system", "user", "assistant"]
    segments: tuple[Segment, ...]
