"""A medium as a record holds it (bytes, a struct of `datasets`, an array of samples, a path) as the bytes of a file."""

import base64
import binascii
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyloop.media.formats import LIMITS, sniff, write_audio
from anyloop.media.limits import MediaError, MediaLimits
from anyloop.media.store import modality_of
from anyloop.modality import Modality

_SHORTEST_BASE64 = 64  # characters; a shorter text that is no file's name is a mistake, not a picture


@dataclass(frozen=True)
class MediaFile:
    data: bytes
    mime_type: str
    modality: Modality


class MediaReader:
    """`roots` are the folders that relative paths may begin at. Nothing outside of them is opened: a record of a
    published set must not be able to name any file of this machine. Links within them are followed."""

    def __init__(self, roots: Sequence[Path], limits: MediaLimits = LIMITS) -> None:
        self._roots = [Path(os.path.abspath(root)) for root in roots]
        self._limits = limits

    def read(self, value: Any, modality: Modality) -> MediaFile:
        """Raises MediaError: not there, not fetched, of another modality, or over the limit of its modality."""
        data = self._data(value, modality)
        self._limits.check_size(data, modality)
        mime_type = sniff(data)
        if modality_of(mime_type) is not modality:
            raise MediaError(f"this is a {mime_type} file, not {modality}")
        return MediaFile(data, mime_type, modality)

    def _data(self, value: Any, modality: Modality) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return self._of_text(value, modality)
        if isinstance(value, dict):
            if value.get("array") is not None:
                return _sound(value)
            for key in ("bytes", "path", "url"):
                if value.get(key) is not None:
                    return self._data(value[key], modality)
        raise MediaError(f"{_described(value)} is no {modality}: give bytes, a path, or samples with their rate")

    def _of_text(self, text: str, modality: Modality) -> bytes:
        scheme = text.partition(":")[0].lower()
        if scheme == "data":
            return _decoded(text.partition(",")[2], modality)
        if scheme in ("http", "https"):
            raise MediaError("the record names a URL, and an import fetches nothing: download the media first")
        if (path := self._found(text)) is not None:
            return path.read_bytes()
        if len(text) >= _SHORTEST_BASE64 and "." not in text:
            return _decoded(text, modality)
        raise MediaError(f"{text[:120]!r} is in none of the media folders: unpack the archive, or name its folder")

    def _found(self, text: str) -> Path | None:
        for root in self._roots:
            path = Path(os.path.normpath(root / text))
            try:
                if path.is_relative_to(root) and path.is_file():
                    return path
            except (OSError, ValueError):  # a name too long, or with a null byte in it
                return None
        return None


def _sound(value: dict[str, Any]) -> bytes:
    """`array` (`[time]`, or `[channels, time]`, mixed down) at `sampling_rate` Hz as a WAV file."""
    rate = value.get("sampling_rate")
    samples = np.asarray(value["array"], dtype=np.float32)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1000 <= rate <= 384_000:
        raise MediaError(f"the sampling rate is {rate!r}: samples need one from 1000 to 384000 Hz")
    if samples.ndim == 2:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1 or not samples.size:
        raise MediaError(f"samples of shape {samples.shape} are no sound")
    return write_audio(np.nan_to_num(samples), int(rate))


def _decoded(text: str, modality: Modality) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"the {modality} is neither a file's path nor base64") from error


def _described(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
