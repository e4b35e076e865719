"""The key table: which key of a record holds what. Ours is `keys.toml`; a file of the user's extends it."""

import hashlib
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from anyloop.modality import Modality

_OURS = Path(__file__).with_name("keys.toml")
_COMMON = "common"


class KeysError(ValueError):
    """A key table that cannot be used. The message names the place and what to write there."""


class Part(BaseModel):
    """One content part: a modality and the keys that may hold it, for example `{ image = ["image"] }`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: list[str] = []
    image: list[str] = []
    audio: list[str] = []
    video: list[str] = []
    required: bool = True

    @model_validator(mode="after")
    def _one_modality(self) -> "Part":
        if sum(bool(getattr(self, modality)) for modality in Modality) != 1:
            raise ValueError('a part names the keys of one modality, for example { text = ["question"] }')
        return self

    @property
    def modality(self) -> Modality:
        return next(modality for modality in Modality if getattr(self, modality))

    @property
    def keys(self) -> list[str]:
        return list(getattr(self, self.modality))


class Keys(BaseModel):
    """The table of one subtask, what all subtasks share included. See `keys.toml` for what each entry means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    names: list[str] = []
    prompt: list[Part] = Field(min_length=1)
    answer: list[Part] = Field(min_length=1)
    refinement: list[Part] = []
    preference: list[str] = []
    critique: list[str] = []
    comparison: list[str] = []
    rating: list[str] = []
    rationale: list[str] = []
    better: list[str] = []
    model: list[str] = []
    annotator: list[str] = []
    letters: dict[str, str] = {}
    keep: list[str] = []
    ignore: list[str] = []
    scale: float = Field(3.0, gt=0)
    strip: list[str] = []
    rationales_as_critique: bool = True


class KeyTable:
    """The subtasks by name, in the order of the table."""

    def __init__(self, subtasks: dict[str, Keys], digest: str) -> None:
        self.subtasks = subtasks
        self.digest = digest  # changes with anything in the table
        self._names = {name.lower(): subtask for subtask, keys in subtasks.items() for name in (subtask, *keys.names)}

    @classmethod
    def load(cls, extension: Path | None = None) -> "KeyTable":
        """Our table, extended by the user's where one is given. Raises KeysError."""
        tables = [_read(_OURS)] + ([_read(extension)] if extension else [])
        merged: dict[str, dict[str, Any]] = {}
        for table in tables:
            for subtask, entries in table.items():
                merged[subtask] = _merged(merged.get(subtask, {}), entries)
        common = merged.pop(_COMMON, {})
        subtasks = {}
        for subtask, entries in merged.items():
            try:
                subtasks[subtask] = Keys(**_merged(common, entries))
            except (ValidationError, TypeError) as error:
                raise KeysError(f"key table, [{subtask}]: {_complaints(error)}") from error
        digest = hashlib.sha256(repr(sorted(subtasks.items())).encode()).hexdigest()
        return cls(subtasks, digest)

    def subtask(self, name: str) -> str:
        """The subtask of that name or of that other name of it. Raises KeysError."""
        found = self._names.get(name.strip().lower())
        if found is None:
            raise KeysError(f"no subtask {name!r}: there are {', '.join(self.subtasks)} (--keys FILE adds others)")
        return found

    def subtask_of_path(self, name: str) -> str | None:
        """The subtask that a file's path within its folder names, the part nearest to the file first: a folder
        `text-to-image`, or a file such as `example_t2i.parquet`."""
        parts = Path(name).parts
        for part in (Path(name).stem, *reversed(parts[:-1])):
            words = [part, *part.replace(".", "_").split("_")]
            for word in words:
                if found := self._names.get(word.lower()):
                    return found
        return None


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """`theirs` first: their alternatives before ours, their dimensions beside ours; parts and numbers replace."""
    merged = dict(ours)
    for name, value in theirs.items():
        held = merged.get(name)
        if isinstance(value, list) and isinstance(held, list) and all(isinstance(one, str) for one in value + held):
            merged[name] = value + [one for one in held if one not in value]
        elif isinstance(value, dict) and isinstance(held, dict):
            merged[name] = held | value
        else:
            merged[name] = value
    return merged


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise KeysError(f"the key table {path} cannot be read: {error}") from error
    if loose := [name for name, entries in table.items() if not isinstance(entries, dict)]:
        raise KeysError(f"the key table {path}: {loose[0]} stands outside of a table; put it under [common] or [T2T]")
    return table


def _complaints(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    said = []
    for detail in error.errors(include_input=False):
        place = ".".join(map(str, detail["loc"]))
        said.append(f"{place}: {str(detail['msg']).removeprefix('Value error, ')}" if place else str(detail["msg"]))
    return "; ".join(said)
