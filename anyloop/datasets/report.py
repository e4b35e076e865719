"""What an import understood, and what not: counts with an example each, so that nothing goes missing in silence."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

_EXAMPLE_CHARACTERS = 160


@dataclass
class Tally:
    """How often, and the first place and detail."""

    count: int = 0
    where: str = ""
    example: str = ""

    def add(self, where: str, example: str) -> None:
        self.count += 1
        if self.count == 1:
            self.where, self.example = writable(where), writable(example[:_EXAMPLE_CHARACTERS])


@dataclass
class Subtask:
    """`read` = `imported` + `already` + `repeated` + `refused`. `without_tokens` are among the imported ones."""

    read: int = 0
    imported: int = 0
    already: int = 0  # in the log from an earlier import
    repeated: int = 0  # equal to an earlier record of these data
    refused: int = 0  # not understood
    without_tokens: int = 0  # in the log, but nothing can be learned from it with this model
    problems: dict[str, Tally] = field(default_factory=dict)
    unknown_keys: dict[str, Tally] = field(default_factory=dict)

    def problem(self, kind: str, where: str, detail: str) -> None:
        self.problems.setdefault(writable(kind), Tally()).add(where, detail)

    def unknown_key(self, key: str, where: str, value: Any) -> None:
        self.unknown_keys.setdefault(writable(key), Tally()).add(where, _shown(value))


@dataclass
class Report:
    """`events` counts what was written, by kind; `files` are problems with whole files."""

    subtasks: dict[str, Subtask] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)

    def of(self, subtask: str) -> Subtask:
        return self.subtasks.setdefault(subtask, Subtask())

    def count(self, kinds: Iterable[str]) -> None:
        """Events written, by what they carry."""
        for kind in kinds:
            self.events[kind] = self.events.get(kind, 0) + 1

    def total(self, name: str) -> int:
        """The sum over the subtasks of one of their counts."""
        return sum(int(getattr(one, name)) for one in self.subtasks.values())

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, held: dict[str, Any]) -> "Report":
        def tallies(given: dict[str, Any]) -> dict[str, Tally]:
            return {name: Tally(**tally) for name, tally in given.items()}

        subtasks = {
            name: Subtask(**one | {"problems": tallies(one["problems"]), "unknown_keys": tallies(one["unknown_keys"])})
            for name, one in held["subtasks"].items()
        }
        return cls(subtasks, dict(held["events"]), dict(held["files"]), dict(held["unread"]))


def writable(text: str) -> str:
    """Without halves of surrogate pairs: JSON and names of files may hold them, UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return f"a {type(value).__name__}"
