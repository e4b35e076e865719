"""What the gateway remembers, in SQLite: where responses belong, and which feedback it has taken.

Only an index: rebuilt from the log where it is lost (responses) or made harmless by derived ids (feedback).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

# `principals` stands beside `responses` and not in it: after a rollback of the release, the one before writes to this
# file, and it knows two columns.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (response_id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS principals (response_id TEXT PRIMARY KEY, principal TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS positions (partition INTEGER PRIMARY KEY, next INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS log (identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS taken (
  feedback_id TEXT PRIMARY KEY, principal TEXT NOT NULL, body TEXT NOT NULL, early INTEGER NOT NULL, event BLOB NOT NULL
);
"""
# The last release noted where feedback stands in the log, and not what was said.
_MIGRATION = """
BEGIN;
INSERT OR IGNORE INTO taken SELECT feedback_id, principal, body, early, x'' FROM feedback;
DROP TABLE feedback;
COMMIT;
"""
_KEEP = 1_000_000  # rows of each index; the oldest go first
_KEEP_EVENTS = 200_000  # of which this many with what was said
_PRUNE_EVERY = 10_000


class LedgerError(Exception):
    """The ledger's disk is full or does not answer."""


@dataclass(frozen=True)
class TakenFeedback:
    """`body` is the digest of what the client sent, empty when only the outbox knew of it. `event` is the
    FeedbackEvent, empty when it is no longer kept."""

    feedback_id: str
    principal: str
    body: str
    early: bool
    event: bytes


class Ledger:
    """Thread-safe; every method raises LedgerError. One file per gateway process."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._writes = 0
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;" + _SCHEMA)
            if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'feedback'").fetchone():
                self._db.executescript(_MIGRATION)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (sqlite3.Error, OSError) as error:
                raise LedgerError(f"the gateway's ledger {self._path}: {error}") from error

    def conversation_of(self, response_id: str) -> str | None:
        """None for a response that this gateway does not know yet."""
        return self._one("SELECT conversation_id FROM responses WHERE response_id = ?", response_id)

    def principal_of(self, response_id: str) -> str | None:
        """Who was answered, "" where that was not noted; None for a response that this gateway does not know yet."""
        return self._one(
            "SELECT coalesce(principal, '') FROM responses LEFT JOIN principals USING (response_id)"
            " WHERE response_id = ?",
            response_id,
        )

    def _one(self, query: str, response_id: str) -> str | None:
        with self._errors():
            row = self._db.execute(query, (response_id,)).fetchone()
        return None if row is None else str(row[0])

    def add_responses(self, rows: Iterable[tuple[str, str, str]], positions: Mapping[int, int] | None = None) -> None:
        """Notes (response id, conversation id, principal) and, with them, how far the log has been read. The first
        note of a response stays: who says its id again gets neither it nor a word on it."""
        rows = list(rows)
        named = [(response_id, principal) for response_id, _, principal in rows if principal]
        with self._errors():
            self._db.execute("BEGIN")
            try:
                self._db.executemany(
                    "INSERT OR IGNORE INTO responses (response_id, conversation_id) VALUES (?, ?)",
                    [row[:2] for row in rows],
                )
                self._db.executemany("INSERT OR IGNORE INTO principals VALUES (?, ?)", named)
                self._db.executemany("INSERT OR REPLACE INTO positions VALUES (?, ?)", (positions or {}).items())
                self._prune("responses", "principals")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk may have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    def belong_to(self, identity: str) -> bool:
        """Positions mean nothing in another log: where they were noted for another one they are forgotten, and this
        returns True. Positions of an earlier release, which noted no log, are taken to be of this one."""
        with self._errors():
            row = self._db.execute("SELECT identity FROM log").fetchone()
            if row is not None and row[0] == identity:
                return False
            self._db.execute("BEGIN")
            try:
                if row is not None:
                    self._db.execute("DELETE FROM positions")
                self._db.execute("DELETE FROM log")
                self._db.execute("INSERT INTO log VALUES (?)", (identity,))
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return row is not None

    def positions(self) -> dict[int, int]:
        """Per partition of the responses topic, the next offset to read."""
        with self._errors():
            return dict(self._db.execute("SELECT partition, next FROM positions").fetchall())

    def feedback(self, feedback_id: str) -> TakenFeedback | None:
        with self._errors():
            row = self._db.execute("SELECT * FROM taken WHERE feedback_id = ?", (feedback_id,)).fetchone()
        if row is None:
            return None
        taken_id, principal, body, early, event = row
        return TakenFeedback(taken_id, principal, body, bool(early), event)

    def add_feedback(self, taken: TakenFeedback) -> None:
        """The first of an id stays."""
        row = (taken.feedback_id, taken.principal, taken.body, int(taken.early), taken.event)
        with self._errors():
            self._db.execute("INSERT OR IGNORE INTO taken VALUES (?, ?, ?, ?, ?)", row)
            self._prune("taken")

    def close(self) -> None:
        with self._errors():
            self._db.close()

    def _prune(self, *tables: str) -> None:
        self._writes += 1
        for table in tables if self._writes % _PRUNE_EVERY == 0 else ():
            older = f"WHERE rowid <= (SELECT max(rowid) FROM {table}) - ?"
            self._db.execute(f"DELETE FROM {table} {older}", (_KEEP,))
            if table == "taken":
                self._db.execute(f"UPDATE taken SET event = x'' {older} AND event != x''", (_KEEP_EVENTS,))
