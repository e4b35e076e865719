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
    published set must not be able to name any file of this machine. A link is followed where it leads into one of
    them."""

    def __init__(self, roots: Sequence[Path], limits: MediaLimits = LIMITS) -> None:
        self._roots = [Path(os.path.abspath(root)) for root in roots]
        self._targets = [root.resolve() for root in self._roots]  # of links
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
                return self._sound(value)
            for key in ("bytes", "path", "url"):
                if value.get(key) is not None:
                    return self._data(value[key], modality)
        raise MediaError(f"{_described(value)} is no {modality}: give bytes, a path, or samples with their rate")

    def _of_text(self, text: str, modality: Modality) -> bytes:
        scheme = text.partition(":")[0].lower()
        if scheme == "data":
            return self._decoded(text.partition(",")[2], modality)
        if scheme in ("http", "https"):
            raise MediaError("the record names a URL, and an import fetches nothing: download the media first")
        if (path := self._found(text)) is not None:
            self._check_size(path.stat().st_size, modality)  # before it is in memory
            return path.read_bytes()
        if len(text) >= _SHORTEST_BASE64 and "." not in text:
            return self._decoded(text, modality)
        raise MediaError(f"{text[:120]!r} is in none of the media folders: unpack the archive, or name its folder")

    def _found(self, text: str) -> Path | None:
        """The file of this name in the first root that has it. Raises MediaError when it is a link out of the roots."""
        for root in self._roots:
            path = Path(os.path.normpath(root / text))
            try:
                if not path.is_relative_to(root) or not path.is_file():
                    continue
                target = path.resolve()
            except (OSError, ValueError):  # a name too long, or with a null byte in it
                return None
            if not any(target.is_relative_to(one) for one in self._targets):
                raise MediaError(
                    f"{text[:120]!r} is a link that leads out of the media folders: name the folder that it leads to "
                    "with --media-root"
                )
            return target
        return None

    def _sound(self, value: dict[str, Any]) -> bytes:
        """`array` (`[time]`, or `[channels, time]`, mixed down) at `sampling_rate` Hz as a WAV file."""
        rate = value.get("sampling_rate")
        try:
            samples = np.asarray(value["array"], dtype=np.float32)
        except (ValueError, TypeError, OverflowError) as error:
            raise MediaError(f"the samples are no array of numbers ({error})") from error
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 1000 <= rate <= 384_000:
            raise MediaError(f"the sampling rate is {rate!r}: samples need one from 1000 to 384000 Hz")
        if samples.ndim == 2 and samples.size:
            samples = samples.mean(axis=int(np.argmin(samples.shape)))
        if samples.ndim != 1 or not samples.size:
            raise MediaError(f"samples of shape {samples.shape} are no sound")
        self._check_size(2 * samples.size, Modality.AUDIO)  # as 16 bits each
        return write_audio(np.nan_to_num(samples), int(rate))

    def _decoded(self, text: str, modality: Modality) -> bytes:
        self._check_size(len(text) // 4 * 3 - 2, modality)  # two of them may be padding
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MediaError(f"the {modality} is neither a file's path nor base64") from error

    def _check_size(self, size: int, modality: Modality) -> None:
        """What `MediaLimits.check_size` says of bytes, of bytes that are not there yet."""
        limit = self._limits.max_bytes(modality)
        if size > limit:
            raise MediaError(f"the {modality} file has {size} bytes; the limit is {limit}: send a smaller one")


def _described(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
