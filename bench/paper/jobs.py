"""Does the cells that are not done yet, a process each, some at a time; goes on where an earlier run was stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from anyloop.cli.child import Child
from bench.paper.forecast import costs, ranked, seconds_left
from bench.paper.plan import Cell, Graph
from bench.paper.store import Record, Store, write_json
from bench.paper.worker import FUNCTION

_POLL_S = 0.2
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # several cells share the cores
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONUNBUFFERED": "1",
}


class Watcher(Protocol):
    """Who is told how it goes."""

    def begun(self, cell: Cell) -> None: ...

    def ended(self, cell: Cell, record: Record | None, complaint: str) -> None:
        """`record` None: it failed, and why."""

    def passed(self, running: Mapping[Cell, float], left_s: float | None) -> None:
        """A moment went by. Seconds that each running cell has run, seconds to go if anything is known of that."""


@dataclass
class Run:
    """What became of the cells."""

    failed: dict[Cell, str] = field(default_factory=dict)  # and why
    blocked: list[Cell] = field(default_factory=list)  # need one that failed


@dataclass
class _Running:
    child: Child
    began: float


class Runner:
    """`jobs` cells at a time; each computes on one thread."""

    def __init__(
        self,
        store: Store,
        graph: Graph,
        fingerprints: Mapping[Cell, str],
        *,
        commit: str,
        watcher: Watcher,
        jobs: int = 2,
        function: str = FUNCTION,
    ) -> None:
        self._store, self._graph, self._fingerprints = store, graph, fingerprints
        self._commit, self._watcher, self._jobs, self._function = commit, watcher, jobs, function
        self._known: dict[Cell, float] = {}  # seconds

    def run(self, wanted: list[Cell]) -> Run:
        """Leaving it by an exception (Ctrl-C) ends the processes; their cells are begun anew by the next run."""
        run, waiting = Run(), self.undone(wanted)
        running: dict[Cell, _Running] = {}
        try:
            while waiting or running:
                for cell in self._ready(waiting, running):
                    waiting.remove(cell)
                    running[cell] = self._start(cell)
                    self._watcher.begun(cell)
                time.sleep(_POLL_S)
                for cell in [one for one, process in running.items() if process.child.exit_status() is not None]:
                    self._end(cell, running.pop(cell).child, run)
                    waiting = self._without_blocked(waiting, run)
                self._tell(waiting, running)
        finally:
            for process in running.values():
                process.child.kill()
        return run

    def undone(self, wanted: list[Cell]) -> list[Cell]:
        """The wanted cells without a result, and those they need without a result or without their folder."""
        found: dict[Cell, None] = {}

        def add(cell: Cell, read: bool) -> None:
            record = self._store.record(cell, self._fingerprints[cell])
            if record is not None:
                self._known[cell] = record["seconds"]
            if cell not in found and (record is None or (read and not self._store.work(cell).is_dir())):
                found[cell] = None
                for one in self._graph[cell].values():
                    add(one, read=True)

        for cell in wanted:
            add(cell, read=False)
        return [cell for cell in self._graph if cell in found]

    def _ready(self, waiting: list[Cell], running: Mapping[Cell, _Running]) -> list[Cell]:
        free = self._jobs - len(running)
        if free <= 0 or not waiting:
            return []
        seconds = costs(waiting, self._known) or dict.fromkeys(waiting, 1.0)
        pending = {*waiting, *running}
        order = ranked(self._graph, waiting, seconds)
        return [cell for cell in order if pending.isdisjoint(self._graph[cell].values())][:free]

    def _start(self, cell: Cell) -> _Running:
        store, needs = self._store, self._graph[cell]
        store.result(cell).unlink(missing_ok=True)  # of other settings
        job = store.root / "jobs" / f"{cell.id}.json"
        document = {
            "cell": cell.to_json(),
            "inputs": {role: str(store.work(one).absolute()) for role, one in needs.items()},
            "needs": {role: one.id for role, one in needs.items()},
            "folder": str(store.work(cell).absolute()),
            "result": str(store.result(cell).absolute()),
            "function": self._function,
            "fingerprint": self._fingerprints[cell],
            "commit": self._commit,
        }
        write_json(job, document)
        log = store.log(cell)
        log.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "bench.paper.worker", str(job)]
        return _Running(Child(argv, {**os.environ, **_ENVIRONMENT}, log), time.monotonic())

    def _end(self, cell: Cell, child: Child, run: Run) -> None:
        record = self._store.record(cell, self._fingerprints[cell])
        if record is not None:
            self._known[cell] = record["seconds"]
        else:
            run.failed[cell] = complaint(child, self._store.log(cell))
        child.kill()  # whatever it may have left running
        self._watcher.ended(cell, record, run.failed.get(cell, ""))

    def _without_blocked(self, waiting: list[Cell], run: Run) -> list[Cell]:
        """`waiting` is in the order of the graph: who needs a blocked cell comes after it."""
        dead = {*run.failed, *run.blocked}
        for cell in waiting:
            if not dead.isdisjoint(self._graph[cell].values()):
                dead.add(cell)
                run.blocked.append(cell)
        return [cell for cell in waiting if cell not in dead]

    def _tell(self, waiting: list[Cell], running: Mapping[Cell, _Running]) -> None:
        now = time.monotonic()
        since = {cell: now - process.began for cell, process in running.items()}
        seconds = costs([*waiting, *running], self._known)
        left = None if seconds is None else seconds_left(self._graph, waiting, since, seconds, self._jobs)
        self._watcher.passed(since, left)


def complaint(child: Child, log: Path) -> str:
    """How it ended and the last it said."""
    status = child.exit_status()
    ended = "gave no result" if status == 0 else f"exited with status {status}"
    if status is not None and status < 0:
        ended = f"was ended by signal {-status}" + (" (out of memory, perhaps)" if status == -9 else "")
    lines = [line.strip() for line in child.log_tail().splitlines() if line.strip()]
    return f"{ended}: {lines[-1] if lines else 'it said nothing'} ({log})"
