"""The folder of one experiment: a JSON file per finished cell, and beside it what the cell wrote and said.

cells/ID.json   the result: there and whole, or not there
work/ID/        checkpoints and whatever else later cells read
logs/ID.log     output of the process that did the cell
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.paper.plan import Cell

Record = dict[str, Any]


class InUse(Exception):
    """Another run works in the folder."""


class Store:
    def __init__(self, root: Path) -> None:
        self.root = root

    def result(self, cell: Cell) -> Path:
        return self.root / "cells" / f"{cell.id}.json"

    def work(self, cell: Cell) -> Path:
        return self.root / "work" / cell.id

    def log(self, cell: Cell) -> Path:
        return self.root / "logs" / f"{cell.id}.log"

    def record(self, cell: Cell, fingerprint: str) -> Record | None:
        """The result, if the cell is done as the plan wants it: with its settings, on what it builds on now. It stays
        one when somebody frees the disk of `work`: what a later cell misses there is made again."""
        try:
            record: Record = json.loads(self.result(cell).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return record if record.get("fingerprint") == fingerprint else None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises InUse."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise InUse(f"another run works in {self.root}: wait for it, or give --out another folder") from error
            yield


def records(store: Store, fingerprints: Mapping[Cell, str]) -> dict[Cell, Record]:
    """The results that are there, in the order of the graph."""
    found = {cell: store.record(cell, fingerprint) for cell, fingerprint in fingerprints.items()}
    return {cell: record for cell, record in found.items() if record is not None}


def write_json(path: Path, document: Any) -> None:
    """Whole or not at all, also if the machine stops in between. Raises ValueError for what JSON has no word for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("w") as file:
        json.dump(document, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
