"""The SQLite file behind the trainer's state: its schema, one owner at a time, whole transactions."""

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protos.anyloop.v1 import events_pb2

_VERSION = 4

# `feedback.delay` is the time in ms between the response and what was said of it; NULL until they have joined. `part`
# and `pos` are the place in the feedback topic; NULL when an earlier release wrote the row. `replays` counts how often
# it came back from the dead letters.
# What is asked at every poll has an index that answers it alone, without the rows (they hold the events). No index has
# all unclaimed rows under one key, such as round NULL: the planner would take that one and read them all.
SCHEMA = """
CREATE TABLE IF NOT EXISTS response (
  id TEXT PRIMARY KEY, conversation TEXT, created INTEGER, data BLOB, arrived REAL NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS response_conversation ON response (conversation, created);
CREATE INDEX IF NOT EXISTS response_arrived ON response (arrived);
CREATE TABLE IF NOT EXISTS feedback (
  id TEXT PRIMARY KEY, principal TEXT, key TEXT, created INTEGER, arrived REAL, data BLOB,
  round INTEGER, orphan INTEGER NOT NULL DEFAULT 0,
  response TEXT NOT NULL DEFAULT '', worse TEXT NOT NULL DEFAULT '', conversation TEXT NOT NULL DEFAULT '',
  delay INTEGER, part INTEGER, pos INTEGER, replays INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS feedback_key ON feedback (principal, key) WHERE key != '';
CREATE INDEX IF NOT EXISTS feedback_round ON feedback (round) WHERE round IS NOT NULL;
CREATE INDEX IF NOT EXISTS feedback_ready ON feedback (delay, part, arrived, round)
  WHERE round IS NULL AND delay IS NOT NULL;
CREATE INDEX IF NOT EXISTS feedback_waiting ON feedback (arrived, part, delay, round)
  WHERE round IS NULL AND delay IS NULL;
CREATE INDEX IF NOT EXISTS feedback_untold ON feedback (arrived)
  WHERE round IS NULL AND delay IS NULL AND orphan = 0;
CREATE INDEX IF NOT EXISTS feedback_response ON feedback (response) WHERE round IS NULL;
CREATE INDEX IF NOT EXISTS feedback_worse ON feedback (worse) WHERE round IS NULL;
CREATE INDEX IF NOT EXISTS feedback_conversation ON feedback (conversation) WHERE round IS NULL;
CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS position (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS round (
  id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, offsets TEXT NOT NULL, started REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, outcome TEXT NOT NULL DEFAULT '', key TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS pairs (round INTEGER PRIMARY KEY, made_of TEXT NOT NULL, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS trust (id TEXT PRIMARY KEY, round INTEGER NOT NULL, trust REAL NOT NULL) WITHOUT ROWID;
"""

_FROM_1 = """
ALTER TABLE response ADD COLUMN arrived REAL NOT NULL DEFAULT 0;
ALTER TABLE feedback ADD COLUMN response TEXT NOT NULL DEFAULT '';
ALTER TABLE feedback ADD COLUMN worse TEXT NOT NULL DEFAULT '';
ALTER TABLE feedback ADD COLUMN conversation TEXT NOT NULL DEFAULT '';
ALTER TABLE feedback ADD COLUMN delay INTEGER;
ALTER TABLE feedback ADD COLUMN part INTEGER;
ALTER TABLE feedback ADD COLUMN pos INTEGER;
ALTER TABLE round ADD COLUMN key TEXT NOT NULL DEFAULT '';
UPDATE round SET key = (SELECT id FROM identity) || '-' || id;
DROP INDEX IF EXISTS response_conversation;
"""

_FROM_2 = """
ALTER TABLE feedback ADD COLUMN replays INTEGER NOT NULL DEFAULT 0;
DROP INDEX IF EXISTS feedback_round;
DROP INDEX IF EXISTS feedback_ready;
DROP INDEX IF EXISTS feedback_late;
DROP INDEX IF EXISTS feedback_waiting;
"""


class StateInUse(Exception):
    """Another trainer owns the state."""


class StateFile:
    """Not thread-safe. Raises StateInUse while another process has it open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = _acquire(path.with_suffix(".lock"))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self.migrated = self._prepare(path)
        self.identity = str(self.rows("SELECT id FROM identity")[0][0])

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> sqlite3.Cursor:
        return self._db.execute(sql, tuple(parameters))

    def rows(self, sql: str, parameters: Iterable[Any] = ()) -> list[tuple[Any, ...]]:
        return self.execute(sql, parameters).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and durable when it ends."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Idempotent."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self, path: Path) -> bool:
        """Whether the file was one of an earlier release, whose feedback has not been settled."""
        version = self.rows("PRAGMA user_version")[0][0]
        if version > _VERSION:
            raise RuntimeError(f"{path} was written by a later release (schema {version}): update this one")
        if version == _VERSION:
            return False
        old = bool(self.rows("SELECT 1 FROM sqlite_master WHERE name = 'feedback'"))
        with self.transaction():
            first, second = old and version < 2, old and version < 3
            for statement in ((_FROM_1 if first else "") + (_FROM_2 if second else "") + SCHEMA).split(";"):
                self.execute(statement)
            self.execute(
                "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)", (uuid.uuid4().hex[:12],)
            )
            if first:
                self._name_what_waits()
            self.execute(f"PRAGMA user_version={_VERSION}")
        return second

    def _name_what_waits(self) -> None:
        for (data,) in self.rows("SELECT data FROM feedback WHERE round IS NULL"):
            event = events_pb2.FeedbackEvent.FromString(data)
            said = event.feedback
            self.execute(
                "UPDATE feedback SET response = ?, worse = ?, conversation = ? WHERE id = ?",
                (said.response_id, said.preferred_over, said.conversation_id, event.feedback_id),
            )


def _acquire(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StateInUse(
            f"another trainer works on {path.parent}: stop it, or give each its own ANYLOOP_HOME"
        ) from error
    return descriptor
