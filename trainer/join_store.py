"""The trainer's durable state: events seen, log positions consumed, rounds and what they used. One SQLite file.

One process owns it at a time: two would both resume the open round.

Events and the positions behind them are written in one transaction, and a round claims its feedback in one transaction.
So a process killed anywhere resumes with nothing lost and nothing used twice, whatever the log delivers again.
"""

import fcntl
import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protos.anyloop.v1 import events_pb2
from trainer.join import Joined, cap_per_principal, distinct, join, named_responses

SCHEMA = """
CREATE TABLE IF NOT EXISTS response (id TEXT PRIMARY KEY, conversation TEXT, created INTEGER, data BLOB) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS response_conversation ON response (conversation);
CREATE TABLE IF NOT EXISTS feedback (
  id TEXT PRIMARY KEY, principal TEXT, key TEXT, created INTEGER, arrived REAL, data BLOB,
  round INTEGER, orphan INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS feedback_key ON feedback (principal, key) WHERE key != '';
CREATE INDEX IF NOT EXISTS feedback_round ON feedback (round);
CREATE TABLE IF NOT EXISTS identity (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS position (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
CREATE TABLE IF NOT EXISTS round (
  id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, offsets TEXT NOT NULL, started REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, outcome TEXT NOT NULL DEFAULT ''
);
"""
ELSEWHERE = 0  # round of feedback that a checkpoint made by an earlier, lost state used; real rounds count from 1

Offsets = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Round:
    """A claimed set of feedback. `offsets` is what of the log was consumed when it was claimed."""

    id: int
    key: str  # unique over all states there ever were; marks what the round publishes
    offsets: Offsets
    started: float
    attempts: int


class StateInUse(Exception):
    """Another trainer owns the state."""


class JoinStore:
    """Not thread-safe: the learner's loop owns it. Raises StateInUse while another process has it open."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = _acquire(path.with_suffix(".lock"))
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.executescript(SCHEMA)
        self._db.execute(
            "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)", (uuid.uuid4().hex[:12],)
        )
        self._identity = str(self._db.execute("SELECT id FROM identity").fetchone()[0])

    def close(self) -> None:
        """Idempotent."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def fresh(self) -> bool:
        """Whether nothing of the log has been consumed: this state is new, or its making was interrupted."""
        return not self.positions()

    # Events in

    def apply(
        self,
        responses: Iterable[events_pb2.ResponseEvent],
        feedback: Iterable[events_pb2.FeedbackEvent],
        positions: Mapping[tuple[str, int], int],
    ) -> int:
        """Adds what is new, moves the positions; all or nothing. Returns how many feedback events were new."""
        with self._transaction():
            for response in responses:
                self._db.execute(
                    "INSERT OR IGNORE INTO response VALUES (?, ?, ?, ?)",
                    (
                        response.response_id,
                        response.conversation_id,
                        response.created_unix_ms,
                        response.SerializeToString(),
                    ),
                )
            new = 0
            for event in feedback:
                new += self._db.execute(
                    "INSERT OR IGNORE INTO feedback (id, principal, key, created, arrived, data)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        event.feedback_id,
                        event.principal,
                        event.idempotency_key,
                        event.created_unix_ms,
                        time.time(),
                        event.SerializeToString(),
                    ),
                ).rowcount
            for (topic, partition), following in positions.items():
                self._db.execute(
                    "INSERT INTO position VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET next = max(next, excluded.next)",
                    (topic, partition, following),
                )
        return new

    def positions(self) -> dict[tuple[str, int], int]:
        """The next offset to read, by (topic, partition)."""
        return {
            (topic, partition): following for topic, partition, following in self._db.execute("SELECT * FROM position")
        }

    def mark_used(self, feedback_ids: Iterable[str]) -> None:
        """Feedback that checkpoints contain already, when this state is younger than they: it does not count again."""
        with self._transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO feedback (id, principal, key, created, arrived, data, round)"
                " VALUES (?, '', '', 0, 0, x'', ?)",
                [(name, ELSEWHERE) for name in feedback_ids],
            )

    # What is ready

    def ready(self) -> list[Joined]:
        """Feedback that no round has claimed and whose responses are known, oldest first."""
        rows = self._db.execute("SELECT data FROM feedback WHERE round IS NULL")
        return self._join(events_pb2.FeedbackEvent.FromString(data) for (data,) in rows)

    def oldest_arrival(self, joined: Iterable[Joined]) -> float:
        """When the first of `joined` arrived, Unix seconds; now for none."""
        ids = [one.feedback.feedback_id for one in joined]
        found = [
            arrived
            for group in _groups(ids)
            for (arrived,) in self._db.execute(
                f"SELECT min(arrived) FROM feedback WHERE id IN ({','.join('?' * len(group))})", group
            )
        ]
        return min(found, default=time.time())

    def flag_orphans(self, older_than: float) -> list[str]:
        """Unclaimed feedback that arrived before `older_than` (Unix seconds) and joins nothing yet; each told once."""
        rows = self._db.execute(
            "SELECT data FROM feedback WHERE round IS NULL AND orphan = 0 AND arrived < ?", (older_than,)
        ).fetchall()
        events = [events_pb2.FeedbackEvent.FromString(data) for (data,) in rows]
        joined = {one.feedback.feedback_id for one in self._join(events)}
        orphans = [event.feedback_id for event in events if event.feedback_id not in joined]
        with self._transaction():
            self._db.executemany("UPDATE feedback SET orphan = 1 WHERE id = ?", [(name,) for name in orphans])
        return orphans

    # Rounds

    def begin_round(self, max_per_principal: int, max_feedback: int) -> Round | None:
        """Claims the ready feedback for a new round; None when there is none."""
        with self._transaction():
            claimed = cap_per_principal(self.ready(), max_per_principal, max_feedback)
            if not claimed:
                return None
            offsets: Offsets = {}
            for (topic, partition), following in self.positions().items():
                offsets.setdefault(topic, {})[str(partition)] = following
            cursor = self._db.execute(
                "INSERT INTO round (state, offsets, started) VALUES ('open', ?, ?)", (json.dumps(offsets), time.time())
            )
            self._db.executemany(
                "UPDATE feedback SET round = ? WHERE id = ?",
                [(cursor.lastrowid, one.feedback.feedback_id) for one in claimed],
            )
        return self.open_round()

    def open_round(self) -> Round | None:
        """The round that is not finished: the one running, or the one a killed process left."""
        row = self._db.execute("SELECT id, offsets, started, attempts FROM round WHERE state = 'open'").fetchone()
        return Round(row[0], f"{self._identity}-{row[0]}", json.loads(row[1]), row[2], row[3]) if row else None

    def count_attempt(self, round_id: int) -> int:
        self._db.execute("UPDATE round SET attempts = attempts + 1 WHERE id = ?", (round_id,))
        return int(self._db.execute("SELECT attempts FROM round WHERE id = ?", (round_id,)).fetchone()[0])

    def finish_round(self, round_id: int, outcome: str) -> None:
        self._db.execute("UPDATE round SET state = 'finished', outcome = ? WHERE id = ?", (outcome, round_id))

    def claimed(self, round_id: int) -> list[Joined]:
        """The joined feedback of a round."""
        rows = self._db.execute("SELECT data FROM feedback WHERE round = ?", (round_id,))
        return self._join(events_pb2.FeedbackEvent.FromString(data) for (data,) in rows)

    def earlier(self, before_round: int, limit: int) -> list[Joined]:
        """Joined feedback of finished rounds, the newest `limit`, for replay beside a round's own."""
        rows = self._db.execute(
            "SELECT data FROM feedback WHERE round > 0 AND round < ? ORDER BY created DESC LIMIT ?",
            (before_round, limit),
        )
        return self._join(events_pb2.FeedbackEvent.FromString(data) for (data,) in rows)

    def counts(self) -> dict[str, int]:
        """Sizes for the status: responses, feedback, unclaimed, orphans, rounds finished."""
        queries = {
            "responses": "SELECT count(*) FROM response",
            "feedback": "SELECT count(*) FROM feedback",
            "unclaimed": "SELECT count(*) FROM feedback WHERE round IS NULL",
            "orphans": "SELECT count(*) FROM feedback WHERE round IS NULL AND orphan = 1",
            "rounds": "SELECT count(*) FROM round WHERE state = 'finished'",
        }
        return {name: int(self._db.execute(query).fetchone()[0]) for name, query in queries.items()}

    def prune(self, older_than: float) -> int:
        """Deletes responses made before `older_than` (Unix seconds), and the content of used feedback as old.

        Ids of used feedback stay, so that nothing counts twice. Returns the number of responses deleted.
        """
        before = int(older_than * 1000)
        with self._transaction():
            self._db.execute(
                "UPDATE feedback SET round = ?, data = x'' WHERE created < ? AND round IN"
                " (SELECT id FROM round WHERE state = 'finished')",
                (ELSEWHERE, before),
            )
            gone = self._db.execute("DELETE FROM response WHERE created < ?", (before,)).rowcount
        return int(gone)

    def _join(self, events: Iterable[events_pb2.FeedbackEvent]) -> list[Joined]:
        feedback = distinct(events)
        names = {name for event in feedback for name in named_responses(event)}
        talks = {event.feedback.conversation_id for event in feedback if not event.feedback.response_id}
        responses = {}
        for column, wanted in (("id", names), ("conversation", talks)):
            for group in _groups(sorted(wanted)):
                marks = ",".join("?" * len(group))
                for (data,) in self._db.execute(f"SELECT data FROM response WHERE {column} IN ({marks})", group):
                    response = events_pb2.ResponseEvent.FromString(data)
                    responses[response.response_id] = response
        return join(feedback, responses.values())[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")


def _acquire(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StateInUse(
            f"another trainer works on {path.parent}: stop it, or give each its own ANYLOOP_HOME"
        ) from error
    return descriptor


def _groups(items: list[str], size: int = 500) -> Iterator[list[str]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
