"""Token ids of what others wrote, drew or recorded, as the model at hand would read and emit it.

An imported answer was sampled by some other model: it has token ids here, but no log-probabilities and no version.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyloop.media.fit import fit_for_codec
from anyloop.media.limits import MediaError, MediaLimits
from anyloop.modality import Modality
from anyloop.sequence import Codes, LayoutError, Segment, Sequencer, Turn

_REMEMBERED = 256  # codes of media: the prompt's are asked for once for each answer


class NoTokens(ValueError):
    """This model cannot hold the content. `kind` is the same for all content that fails in the same way."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True)
class Content:
    """Text, or the bytes of a media file under their SHA-256."""

    modality: Modality
    text: str = ""
    data: bytes = b""
    sha256: str = ""


class ContentEncoder:
    """Prompts and answers to token ids by a model directory's tokenizer and codecs; torch is imported at the first
    medium. `capacity`: tokens of prompt and answer together."""

    def __init__(self, model_dir: Path, capacity: int, limits: MediaLimits) -> None:
        """Raises LayoutError when the directory has no tokenizer or layout."""
        self._sequencer = Sequencer.from_pretrained(model_dir)
        self._model_dir, self._capacity, self._limits = Path(model_dir), capacity, limits
        self._longest = max(len(token) for token in self._sequencer.tokenizer.get_vocab())
        self._codecs: dict[Modality, Any] = {}
        self._known: OrderedDict[tuple[Modality, str], Codes] = OrderedDict()

    def prompt(self, parts: Sequence[Content]) -> list[int]:
        """One turn of a user, ready to be answered. Raises NoTokens."""
        return self._sequencer.prompt([Turn("user", self._segments(parts))])

    def answer(self, parts: Sequence[Content], after: Sequence[int]) -> list[int]:
        """The answer to the prompt `after`, closing token included. Raises NoTokens."""
        tokens = self._sequencer.answer(self._segments(parts))
        if len(after) + len(tokens) > self._capacity:
            raise NoTokens(
                "prompt and answer are longer than this model holds",
                f"{len(after)} + {len(tokens)} tokens; ANYLOOP_ENGINE_MAX_TOKENS is {self._capacity}",
            )
        return tokens

    def _segments(self, parts: Sequence[Content]) -> tuple[Segment, ...]:
        characters = sum(len(part.text) for part in parts)
        if characters > self._capacity * self._longest:  # before the tokenizer works on it
            raise NoTokens("prompt and answer are longer than this model holds", f"{characters} characters of text")
        return tuple(part.text if part.modality is Modality.TEXT else self._codes(part) for part in parts)

    def _codes(self, part: Content) -> Codes:
        key = part.modality, part.sha256
        if key not in self._known:
            self._known[key] = self._encode(part)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        return self._known[key]

    def _encode(self, part: Content) -> Codes:
        if part.modality not in self._sequencer.layout.codes:
            raise NoTokens(f"this model has no codes for {part.modality}", "its layout names none")
        import torch

        codec = self._codec(part.modality)
        try:
            array = fit_for_codec(part.data, part.modality, codec.config.input_shape, codec.config.rate, self._limits)
        except MediaError as error:
            raise NoTokens(f"the codec cannot take the {part.modality}", str(error)) from error
        codes = codec.encode(torch.from_numpy(array)[None])[0].tolist()
        return Codes(part.modality, tuple(int(code) for code in codes))

    def _codec(self, modality: Modality) -> Any:
        if modality not in self._codecs:
            from transformers.utils import logging

            from anyloop.models.codec import PatchVQ

            logging.disable_progress_bar()  # of three tensors
            folder = self._model_dir / "codecs" / str(modality)
            try:
                self._codecs[modality] = PatchVQ.from_pretrained(str(folder)).eval()
            except (OSError, ValueError) as error:
                raise LayoutError(f"the codec {folder} cannot be loaded: {error}") from error
        return self._codecs[modality]
