"""How far an import is, on the disk: so that one that was killed goes on where it was.

The log decides what is imported; this only spares reading what was read. It is written after the events it speaks of.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyloop.datasets.report import Report


class ImportRunning(RuntimeError):
    """Another process works on the import of this name."""


class Progress:
    """In `folder`: progress.json, and records.jsonl with a line for every record that was not understood whole.

    `events` is how many imported events the log held at the last `save`, and `witness` the id of the newest of them.
    """

    def __init__(
        self,
        folder: Path,
        source: Mapping[str, Any],
        *,
        resume: bool = True,
        stamps: Mapping[str, str] | None = None,
        known: Set[str] = frozenset(),
    ) -> None:
        """`source` says what is imported how; an unfinished import of exactly that is gone on with, where `stamps`
        (of the files, by name) are what they were and `known`, the ids of imported events in the log, shows that it
        is the log of then: a position in another file, or of another log, would skip records."""
        self._folder, self._source, self._stamps = folder, dict(source), dict(stamps or {})
        self._known = known
        self.events, self.witness = 0, ""
        self.positions: dict[str, int] = {}
        self.report = Report()
        self.begun_ms = time.time_ns() // 1_000_000
        self._lines: list[str] = []
        self._written = 0  # bytes of records.jsonl that the report speaks of
        self.resumed = resume and self._load()

    @property
    def records_file(self) -> Path:
        return self._folder / "records.jsonl"

    def note(self, where: str, subtask: str, outcome: str, problems: Mapping[str, str]) -> None:
        """One record that was not understood whole; on the disk with the next `save`."""
        line = {"record": where, "subtask": subtask, "outcome": outcome, "problems": dict(problems)}
        self._lines.append(json.dumps(line, ensure_ascii=False) + "\n")

    def save(self, *, done: bool = False) -> None:
        """Atomic; durable when it returns."""
        with self.records_file.open("ab") as file:
            file.truncate(self._written)
            file.seek(self._written)
            file.write("".join(self._lines).encode("utf-8", "replace"))
            file.flush()
            os.fsync(file.fileno())
            self._written = file.tell()
        self._lines.clear()
        document = {
            "source": self._source,
            "done": done,
            "begun_ms": self.begun_ms,
            "positions": self.positions,
            "stamps": {name: self._stamps.get(name, "") for name in self.positions},
            "events": self.events,
            "witness": self.witness,
            "records_bytes": self._written,
            "report": self.report.to_dict(),
        }
        temporary = self._folder / ".progress.json"
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)  # in ASCII: names of files may be no UTF-8
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / "progress.json")

    def _load(self) -> bool:
        try:
            held = json.loads((self._folder / "progress.json").read_text(encoding="utf-8"))
            if held["done"] or held["source"] != self._source:
                return False
            report = Report.from_dict(held["report"])
            positions, begun, written = dict(held["positions"]), int(held["begun_ms"]), int(held["records_bytes"])
            events, witness = int(held["events"]), str(held["witness"])
            if held["stamps"] != {name: self._stamps.get(name, "") for name in positions}:
                return False
            if len(self._known) < events or (events and witness not in self._known):
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False  # none yet, or not one of ours: the log knows what is imported
        if not self.records_file.exists() or self.records_file.stat().st_size < written:
            return False
        self.positions, self.report, self.begun_ms, self._written = positions, report, begun, written
        self.events, self.witness = events, witness
        return True


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Holds the import's folder for this process. Raises ImportRunning."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ImportRunning(f"another import works in {folder}: wait until it has ended, or stop it") from error
        yield
