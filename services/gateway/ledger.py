"""What the gateway remembers of the log, in SQLite: where responses belong, and which feedback it has taken.

Only an index: rebuilt from the log where it is lost (responses) or made harmless by derived ids (feedback).
"""

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (response_id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS feedback (
  feedback_id TEXT PRIMARY KEY, principal TEXT NOT NULL, body TEXT NOT NULL,
  partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, early INTEGER NOT NULL
);
"""
_KEEP = 1_000_000  # rows of each index; the oldest go first
_PRUNE_EVERY = 10_000


@dataclass(frozen=True)
class TakenFeedback:
    """`body` is the digest of what was said; `partition` and `offset` are where it stands in the log."""

    feedback_id: str
    principal: str
    body: str
    partition: int
    offset: int
    early: bool


class Ledger:
    """Thread-safe. One file per gateway process."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._writes = 0
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)

    def conversation_of(self, response_id: str) -> str | None:
        """None for a response that this gateway does not know yet."""
        with self._lock:
            row = self._db.execute(
                "SELECT conversation_id FROM responses WHERE response_id = ?", (response_id,)
            ).fetchone()
        return None if row is None else str(row[0])

    def add_responses(self, rows: Iterable[tuple[str, str]], positions: Mapping[int, int] | None = None) -> None:
        """Notes (response id, conversation id) pairs and, with them, how far the log has been read."""
        with self._lock:
            self._db.execute("BEGIN")
            try:
                self._db.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?)", rows)
                self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?)", (positions or {}).items())
                self._prune("responses")
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def positions(self) -> dict[int, int]:
        """Per partition of the responses topic, the next offset to read."""
        with self._lock:
            return dict(self._db.execute("SELECT partition, next FROM positions").fetchall())

    def feedback(self, feedback_id: str) -> TakenFeedback | None:
        with self._lock:
            row = self._db.execute("SELECT * FROM feedback WHERE feedback_id = ?", (feedback_id,)).fetchone()
        if row is None:
            return None
        taken_id, principal, body, partition, offset, early = row
        return TakenFeedback(taken_id, principal, body, partition, offset, bool(early))

    def add_feedback(self, taken: TakenFeedback) -> bool:
        """False when this id is there already."""
        row = (taken.feedback_id, taken.principal, taken.body, taken.partition, taken.offset, int(taken.early))
        with self._lock:
            added = self._db.execute("INSERT OR IGNORE INTO feedback VALUES (?, ?, ?, ?, ?, ?)", row).rowcount
            self._prune("feedback")
        return added == 1

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _prune(self, table: str) -> None:
        self._writes += 1
        if self._writes % _PRUNE_EVERY == 0:
            self._db.execute(f"DELETE FROM {table} WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?", (_KEEP,))
