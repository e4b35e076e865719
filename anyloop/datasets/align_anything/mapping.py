"""A record as its keys say it, and why it cannot be understood where it cannot. Pure: media stay as the record holds
them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from anyloop.datasets.align_anything.keys import Keys, KeyTable, Part
from anyloop.modality import Modality

_SIDES = (1, 2)
_MEDIA_SUFFIXES = {
    Modality.IMAGE: {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp"},
    Modality.AUDIO: {".wav", ".flac", ".ogg", ".mp3", ".m4a"},
    Modality.VIDEO: {".mp4", ".webm", ".mov", ".avi", ".mkv"},
}
_ALL_SUFFIXES = set().union(*_MEDIA_SUFFIXES.values())


class NotMapped(ValueError):
    """The record cannot be understood. The message is the same for all records that fail in the same way."""


@dataclass(frozen=True)
class RawPart:
    """`value` is a text, or a medium in whatever form the record has it."""

    modality: Modality
    value: Any


@dataclass(frozen=True)
class RawAnswer:
    """One answer and what was said about it. `better_in`: dimensions in which it was preferred."""

    parts: tuple[RawPart, ...]
    model: str = ""
    critique: str = ""
    refinement: tuple[RawPart, ...] = ()
    ratings: Mapping[str, float] = field(default_factory=dict)
    better_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mapped:
    """`preferred` is 0, 1 or None. `unknown`: keys that no entry of the table speaks of. `notes`: what was understood
    only in part."""

    subtask: str
    prompt: tuple[RawPart, ...]
    answers: tuple[RawAnswer, RawAnswer]
    preferred: int | None
    comparison: str
    annotator: str
    kept: Mapping[str, str]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]


def map_record(values: Mapping[str, Any], table: KeyTable, subtask: str | None = None) -> Mapped:
    """The record as `subtask` says it, or else as the one subtask that its keys fit. Raises NotMapped."""
    return _Reading(values, table.subtasks[subtask], subtask).mapped() if subtask else _fitting(values, table)


def _fitting(values: Mapping[str, Any], table: KeyTable) -> Mapped:
    """The subtask that reads the most content parts and looks for the fewest others; two such are one too many."""
    found: dict[str, Mapped] = {}
    for name, keys in table.subtasks.items():
        try:
            found[name] = _Reading(values, keys, name, strict=True).mapped()
        except NotMapped:
            continue
    if not found:
        raise NotMapped("no subtask has the keys of this record")

    def fit(name: str) -> tuple[int, int]:
        read = len(found[name].prompt) + sum(len(answer.parts) for answer in found[name].answers)
        return read, -len(table.subtasks[name].prompt) - len(table.subtasks[name].answer)

    best = max(fit(name) for name in found)
    fitting = [name for name in found if fit(name) == best]
    if len(fitting) > 1:
        raise NotMapped(f"it may be {' or '.join(fitting)}: put the file in a folder of the subtask's name")
    return found[fitting[0]]


class _Reading:
    """One record against one subtask's table. `strict`: a text that names a media file is no text, and the other way
    round; without a subtask by name, that tells T2T from T2A."""

    def __init__(self, values: Mapping[str, Any], keys: Keys, subtask: str, *, strict: bool = False) -> None:
        self._values, self._keys, self._subtask, self._strict = values, keys, subtask, strict
        self._used: set[str] = set()
        self._notes: list[str] = []

    def mapped(self) -> Mapped:
        keys = self._keys
        prompt = self._parts(keys.prompt, "prompt")
        contents = [self._parts(keys.answer, "answer", side) for side in _SIDES]
        refinements = [self._refinement(side) for side in _SIDES]
        ratings = [self._ratings(side) for side in _SIDES]
        dimensions = list(dict.fromkeys([*ratings[0], *ratings[1], *keys.letters]))
        preferred = self._choice(keys.preference, "preference")
        better = {dimension: self._better(dimension) for dimension in dimensions}
        answers = [
            RawAnswer(
                contents[at],
                self._text(keys.model, side),
                self._critique(side, dimensions),
                refinements[at],
                ratings[at],
                tuple(name for name, choice in better.items() if choice == at),
            )
            for at, side in enumerate(_SIDES)
        ]
        kept = {key: self._text([key]) for key in keys.keep if self._held(key)}
        comparison, annotator = self._text(keys.comparison), self._text(keys.annotator)
        unknown = [
            key for key, value in self._values.items() if not _absent(value) and key not in self._used | {*keys.ignore}
        ]
        return Mapped(
            self._subtask,
            self._stripped(prompt),
            (answers[0], answers[1]),
            preferred,
            comparison,
            annotator,
            kept,
            tuple(unknown),
            tuple(self._notes),
        )

    # Content

    def _parts(self, wanted: Sequence[Part], what: str, side: int = 0) -> tuple[RawPart, ...]:
        parts: list[RawPart] = []
        for part in wanted:
            key = self._first(part.keys, side)
            if key is None:
                if part.required:
                    names = " or ".join(_filled(name, side) for name in part.keys)
                    raise NotMapped(f"no {part.modality} of the {what} under {names}")
                continue
            held = self._held(key)
            for value in held if isinstance(held, list) else [held]:
                if not self._fits(value, part.modality):
                    raise NotMapped(f"{key} of the {what} is {_kind(value)}, not {part.modality}")
                parts.append(RawPart(part.modality, value))
        if not parts:
            raise NotMapped(f"the {what} has no content")
        return tuple(parts)

    def _refinement(self, side: int) -> tuple[RawPart, ...]:
        wanted = [part.model_copy(update={"required": False}) for part in self._keys.refinement]
        if not any(self._first(part.keys, side) for part in wanted):
            return ()
        try:
            return self._parts(wanted, "refinement", side)
        except NotMapped as error:
            self._notes.append(str(error))
            return ()

    def _fits(self, value: Any, modality: Modality) -> bool:
        if modality is Modality.TEXT:
            return isinstance(value, str) and not (self._strict and _names_media(value))
        if isinstance(value, str) and self._strict:
            return value.startswith("data:") or _names_media(value, modality)
        return isinstance(value, str | bytes | dict)

    def _stripped(self, parts: tuple[RawPart, ...]) -> tuple[RawPart, ...]:
        """Without the marks for media that stand in the text of a prompt that has media."""
        if all(part.modality is Modality.TEXT for part in parts):
            return parts
        stripped = []
        for part in parts:
            if part.modality is Modality.TEXT:
                text = part.value
                for mark in self._keys.strip:
                    text = text.replace(mark, "")
                if not text.strip():
                    continue
                part = RawPart(Modality.TEXT, text.strip())
            stripped.append(part)
        return tuple(stripped)

    # What was said

    def _critique(self, side: int, dimensions: Sequence[str]) -> str:
        """The critique in words; where there is none, what was said by dimension, if the table wants that."""
        said = {}
        for dimension in dimensions:
            if text := self._text(self._for_dimension(self._keys.rationale, dimension), side):
                said[dimension] = text
        critique = self._text(self._keys.critique, side)
        if critique:
            if said:
                self._notes.append("rationales by dimension beside a critique are left out")
            return critique
        if said and not self._keys.rationales_as_critique:
            self._notes.append("rationales by dimension are left out, as the key table says")
            return ""
        return "\n".join(f"{dimension.replace('_', ' ')}: {text}" for dimension, text in said.items())

    def _ratings(self, side: int) -> dict[str, float]:
        """Dimension to 0-1, for every key that has the form of a rating."""
        ratings: dict[str, float] = {}
        for pattern in self._keys.rating:
            form = re.compile(re.escape(_filled(pattern, side)).replace(r"\{dimension\}", r"(?P<dimension>\w+)"))
            for key, value in self._values.items():
                match = form.fullmatch(key)
                if match is None or _absent(value) or match["dimension"] in ratings:
                    continue
                self._used.add(key)
                score = _number(value)
                if score is None or not 0 <= score <= self._keys.scale:
                    self._notes.append(f"a rating that is not from 0 to {self._keys.scale:g} is left out")
                    continue
                ratings[match["dimension"]] = score / self._keys.scale
        return ratings

    def _better(self, dimension: str) -> int | None:
        claimed = [key for key in self._for_dimension(self._keys.better, dimension) if key not in self._used]
        return self._choice(claimed, "preference by dimension")

    def _choice(self, keys: Sequence[str], what: str) -> int | None:
        """0 or 1 for the answer that a key prefers."""
        key = self._first(keys)
        if key is None:
            return None
        number = _number(self._held(key))
        if number in _SIDES:
            return _SIDES.index(int(number))
        self._notes.append(f"a {what} that is neither 1 nor 2 prefers none")
        return None

    def _for_dimension(self, patterns: Sequence[str], dimension: str) -> list[str]:
        letter = self._keys.letters.get(dimension, "")
        named = [pattern.replace("{dimension}", dimension) for pattern in patterns]
        return [name.replace("{letter}", letter) for name in named if letter or "{letter}" not in name]

    # Keys

    def _first(self, keys: Sequence[str], side: int = 0) -> str | None:
        """The first of the alternatives that the record fills, marked as understood."""
        for key in keys:
            name = _filled(key, side)
            if not _absent(self._held(name)):
                self._used.add(name if name in self._values else name.partition(".")[0])
                return name
        return None

    def _held(self, key: str) -> Any:
        if key in self._values:
            return self._values[key]
        value: Any = self._values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def _text(self, keys: Sequence[str], side: int = 0) -> str:
        key = self._first(keys, side)
        return "" if key is None else str(self._held(key)).strip()


def _filled(key: str, side: int) -> str:
    return key.replace("{n}", str(side))


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | dict) and not value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"of type {type(value).__name__}"


def _names_media(text: str, modality: Modality | None = None) -> bool:
    suffix = PurePosixPath(text).suffix.lower() if len(text) < 1024 and "\n" not in text else ""
    return suffix in (_MEDIA_SUFFIXES[modality] if modality else _ALL_SUFFIXES)
