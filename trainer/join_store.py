"""The trainer's durable state: events seen, log positions consumed, rounds and what they used.

Events and the positions behind them are written in one transaction, and a round claims its feedback in one transaction.
So a process killed anywhere resumes with nothing lost and nothing used twice, whatever the log delivers again.

Joining costs what is new: an event is looked at when it comes in and when what it names comes in, not at every poll.
"""

import json
import time
import uuid
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from protos.anyloop.v1 import events_pb2
from trainer.join import Joined, distinct, join, named_responses, supersedes
from trainer.replay_buffer import ReplayBuffer
from trainer.state_file import StateFile, StateInUse
from trainer.trace_store import TraceStore
from trainer.trust_store import TrustStore

__all__ = ["JoinStore", "Offsets", "Round", "StateInUse", "Unjoined"]

ELSEWHERE = 0  # `feedback.round` where a checkpoint that is not of this state's rounds used it; rounds count from 1
LEFT_OUT = -1  # late, or waited too long
_NEVER_LATE = 2**62

# When a row of `feedback` joins, how long after the response it was said; else NULL.
_DELAY = """max(0, CASE WHEN response != ''
  THEN (SELECT feedback.created - r.created FROM response r WHERE r.id = feedback.response)
  ELSE (SELECT feedback.created - max(r.created) FROM response r
        WHERE r.conversation = feedback.conversation AND r.created <= feedback.created) END)"""
_SETTLE = (
    f"UPDATE feedback SET delay = {_DELAY} WHERE round IS NULL AND delay IS NULL"
    " AND (worse = '' OR EXISTS (SELECT 1 FROM response w WHERE w.id = worse)) AND "
)

Offsets = dict[str, dict[str, int]]


@dataclass(frozen=True)
class Round:
    """A claimed set of feedback. `offsets` is what of the log was consumed when it was claimed."""

    id: int
    key: str  # unique over all states there ever were; marks what the round publishes
    offsets: Offsets
    started: float
    attempts: int


@dataclass(frozen=True)
class Unjoined:
    """Feedback beyond the join window: said too late, or still without its response."""

    event: events_pb2.FeedbackEvent
    partition: int
    offset: int
    late: bool
    replays: int  # how often it came back from the dead letters


class JoinStore:
    """Not thread-safe: the learner's loop owns it. Raises StateInUse while another process has it open.

    `late_after_s`: feedback said longer than this after its response is not ready; None takes all.
    """

    def __init__(self, path: Path, late_after_s: float | None = None) -> None:
        self._db = StateFile(path)
        self.pairs = ReplayBuffer(self._db)
        self.trust = TrustStore(self._db)
        self.traces = TraceStore(self._db)
        self._late_ms = _NEVER_LATE if late_after_s is None else int(late_after_s * 1000)
        if self._db.migrated:
            self._db.execute(_SETTLE + "1")

    def close(self) -> None:
        """Idempotent."""
        self._db.close()

    # Events in

    def apply(
        self,
        responses: Iterable[events_pb2.ResponseEvent],
        feedback: Iterable[events_pb2.FeedbackEvent],
        positions: Mapping[tuple[str, int], int],
        places: Mapping[str, tuple[int, int]] | None = None,
        put_back: Mapping[str, int] | None = None,
    ) -> int:
        """Adds what is new, moves the positions; all or nothing. Returns how many feedback events were new.

        `places`: (partition, offset) by feedback id. `put_back`: how often somebody has taken it out of the dead
        letters, by feedback id; what had been left out, or waits yet, gets another chance.
        """
        new = 0
        now = time.time()
        with self._db.transaction():
            for event in feedback:
                place = (places or {}).get(event.feedback_id, (0, 0))
                replays = (put_back or {}).get(event.feedback_id, 0)
                if replays:
                    self._db.execute(
                        "DELETE FROM feedback WHERE id = ? AND (round = ? OR round IS NULL) AND replays < ?",
                        (event.feedback_id, LEFT_OUT, replays),
                    )
                new += self._insert_feedback(event, now, place, replays)
            for response in responses:
                self._insert_response(response, now)
            self._move(positions)
        return new

    def _insert_feedback(
        self, event: events_pb2.FeedbackEvent, now: float, place: tuple[int, int], replays: int
    ) -> int:
        said = event.feedback
        names = (said.response_id, said.preferred_over, said.conversation_id)
        new = self._db.execute(
            "INSERT OR IGNORE INTO feedback"
            " (id, principal, key, created, arrived, data, response, worse, conversation, part, pos, replays)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                event.feedback_id,
                event.principal,
                event.idempotency_key,
                event.created_unix_ms,
                now,
                event.SerializeToString(),
                *names,
                *place,
                replays,
            ),
        ).rowcount
        if new:
            self._db.execute(_SETTLE + "id = ?", (event.feedback_id,))
        return int(new)

    def _insert_response(self, event: events_pb2.ResponseEvent, now: float) -> None:
        row = (event.response_id, event.conversation_id, event.created_unix_ms, event.SerializeToString(), now)
        new = self._db.execute("INSERT OR IGNORE INTO response VALUES (?, ?, ?, ?, ?)", row).rowcount
        if new or self._supersede(event):
            self._db.execute(_SETTLE + "response = ?", (event.response_id,))
            self._db.execute(_SETTLE + "worse = ?", (event.response_id,))
            self._db.execute(_SETTLE + "conversation = ? AND response = ''", (event.conversation_id,))

    def _supersede(self, event: events_pb2.ResponseEvent) -> bool:
        """Puts a later attempt at an answer in the place of the one before it, and joins anew what no round has."""
        if not event.attempt:
            return False
        known = self._db.rows("SELECT data FROM response WHERE id = ?", (event.response_id,))[0][0]
        if not supersedes(event, events_pb2.ResponseEvent.FromString(known)):
            return False
        self._db.execute(
            "UPDATE response SET conversation = ?, created = ?, data = ? WHERE id = ?",
            (event.conversation_id, event.created_unix_ms, event.SerializeToString(), event.response_id),
        )
        self._db.execute(
            "UPDATE feedback SET delay = NULL WHERE round IS NULL"
            " AND (response = ? OR (response = '' AND conversation = ?))",
            (event.response_id, event.conversation_id),
        )
        return True

    def _move(self, positions: Mapping[tuple[str, int], int]) -> None:
        for (topic, partition), following in positions.items():
            self._db.execute("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", (topic, partition, following))

    def positions(self) -> dict[tuple[str, int], int]:
        """The next offset to read, by (topic, partition)."""
        return {(topic, part): following for topic, part, following in self._db.rows("SELECT * FROM position")}

    # What is ready

    def ready(self, held: Collection[int] | None = None) -> tuple[int, float]:
        """How much feedback of the `held` partitions (None: of all) could be claimed, and when the first of it arrived
        (Unix seconds; now for none)."""
        count, oldest = self._db.rows(
            f"SELECT count(*), min(arrived) FROM feedback WHERE {self._claimable(held)}",
        )[0]
        return int(count), time.time() if oldest is None else float(oldest)

    def waiting(self) -> int:
        """Feedback that has not joined."""
        return int(self._db.rows("SELECT count(*) FROM feedback WHERE round IS NULL AND delay IS NULL")[0][0])

    def flag_orphans(self, older_than: float) -> list[str]:
        """Feedback that arrived before `older_than` (Unix seconds) and joins nothing yet; each told once."""
        where = "round IS NULL AND delay IS NULL AND arrived < ? AND orphan = 0"
        orphans = [name for (name,) in self._db.rows(f"SELECT id FROM feedback WHERE {where}", (older_than,))]
        if orphans:
            self._db.execute(f"UPDATE feedback SET orphan = 1 WHERE {where}", (older_than,))
        return orphans

    def overdue(self, waiting_since: float, held: Collection[int] | None = None, limit: int = 500) -> list[Unjoined]:
        """Feedback said too late, and feedback that arrived before `waiting_since` (Unix seconds) and never joined;
        at most `limit` of each."""
        what = f"SELECT data, part, pos, delay, replays FROM feedback WHERE round IS NULL{_within(held)}"
        rows = self._db.rows(f"{what} AND delay IS NULL AND arrived < ? LIMIT ?", (waiting_since, limit))
        if self._late_ms < _NEVER_LATE:
            rows += self._db.rows(f"{what} AND delay IS NOT NULL AND delay > ? LIMIT ?", (self._late_ms, limit))
        return [
            Unjoined(events_pb2.FeedbackEvent.FromString(data), part or 0, pos or 0, delay is not None, replays)
            for data, part, pos, delay, replays in rows
        ]

    def leave_out(self, feedback_ids: Iterable[str]) -> None:
        """No round will claim these any more."""
        with self._db.transaction():
            for name in feedback_ids:
                self._db.execute("UPDATE feedback SET round = ? WHERE id = ? AND round IS NULL", (LEFT_OUT, name))

    # Rounds

    def begin_round(
        self,
        max_per_principal: int,
        max_feedback: int,
        held: Collection[int] | None = None,
        used: Container[str] = (),
    ) -> Round | None:
        """Claims ready feedback of the `held` partitions for a new round, oldest first; None when there is none.

        What is in `used`, checkpoints have learned from already: it does not count again. No principal brings more than
        `max_per_principal`, so that no single voice fills a round; the rest waits.
        """
        with self._db.transaction():
            while True:
                rows = self._db.rows(
                    "SELECT id FROM ("
                    "SELECT id, created, row_number() OVER (PARTITION BY principal ORDER BY created, id) AS turn"
                    f" FROM feedback WHERE {self._claimable(held)}"
                    ") WHERE turn <= ? ORDER BY created, id LIMIT ?",
                    (max_per_principal, max_feedback),
                )
                spent = [name for (name,) in rows if name in used]
                if not spent:
                    break
                self._assign(ELSEWHERE, spent)
            if not rows:
                return None
            offsets: Offsets = {}
            for (topic, partition), following in self.positions().items():
                offsets.setdefault(topic, {})[str(partition)] = following
            # The key is drawn: a state that comes back from a copy must not take another round's version for its own.
            key = f"{self._db.identity}-{uuid.uuid4().hex[:8]}"
            round_id = self._db.execute(
                "INSERT INTO round (state, offsets, started, key) VALUES ('open', ?, ?, ?)",
                (json.dumps(offsets), time.time(), key),
            ).lastrowid
            assert round_id is not None
            self._assign(round_id, [name for (name,) in rows])
        return self.open_round()

    def open_round(self) -> Round | None:
        """The round that is not finished: the one running, or the one a killed process left."""
        rows = self._db.rows("SELECT id, key, offsets, started, attempts FROM round WHERE state = 'open'")
        return Round(rows[0][0], rows[0][1], json.loads(rows[0][2]), *rows[0][3:]) if rows else None

    def release(self, feedback_ids: Iterable[str]) -> None:
        """Takes out of its round what turned out to be used by another trainer's checkpoint."""
        with self._db.transaction():
            self._assign(ELSEWHERE, feedback_ids)

    def count_attempt(self, round_id: int) -> int:
        self._db.execute("UPDATE round SET attempts = attempts + 1 WHERE id = ?", (round_id,))
        return int(self._db.rows("SELECT attempts FROM round WHERE id = ?", (round_id,))[0][0])

    def finish_round(self, round_id: int, outcome: str) -> None:
        self._db.execute("UPDATE round SET state = 'finished', outcome = ? WHERE id = ?", (outcome, round_id))

    def give_back_round(self, round_id: int, outcome: str) -> None:
        """Finishes a round that nothing was learned from: what it had claimed may be claimed again."""
        with self._db.transaction():
            self._db.execute("UPDATE feedback SET round = NULL WHERE round = ?", (round_id,))
            self.finish_round(round_id, outcome)

    def claimed_count(self, round_id: int) -> int:
        """How much feedback a round holds."""
        return int(self._db.rows("SELECT count(*) FROM feedback WHERE round = ?", (round_id,))[0][0])

    def claimed(self, round_id: int) -> list[Joined]:
        """The joined feedback of a round."""
        return self._join(data for (data,) in self._db.rows("SELECT data FROM feedback WHERE round = ?", (round_id,)))

    def earlier(self, before_round: int, limit: int) -> list[Joined]:
        """Joined feedback of finished rounds, the newest `limit`, for replay beside a round's own."""
        rows = self._db.rows(
            "SELECT data FROM feedback WHERE round > 0 AND round < ? AND data != x'' ORDER BY created DESC LIMIT ?",
            (before_round, limit),
        )
        return self._join(data for (data,) in rows)

    def counts(self) -> dict[str, int]:
        """Sizes for the status: responses, feedback, unclaimed, orphans, rounds finished."""
        queries = {
            "responses": "SELECT count(*) FROM response",
            "feedback": "SELECT count(*) FROM feedback",
            "unclaimed": "SELECT count(*) FROM feedback WHERE round IS NULL",
            "orphans": "SELECT count(*) FROM feedback WHERE round IS NULL AND delay IS NULL AND orphan = 1",
            "rounds": "SELECT count(*) FROM round WHERE state = 'finished'",
        }
        return {name: int(self._db.rows(query)[0][0]) for name, query in queries.items()}

    def prune(self, older_than: float, forget_before: float = 0.0, responses_before: float | None = None) -> int:
        """Deletes the content of used feedback that arrived before `older_than` (Unix seconds), the pairs of rounds
        that began before it, and responses that arrived before `responses_before` (None: as old); forgets even the ids
        of what was used or left out and arrived before `forget_before`.

        What a round may yet claim stays. Returns the number of responses deleted.
        """
        settled = "round <= 0 OR round IN (SELECT id FROM round WHERE state = 'finished')"
        unclaimed = "SELECT 1 FROM feedback f WHERE f.round IS NULL AND f.delay IS NOT NULL AND f."
        with self._db.transaction():
            forgotten = "feedback WHERE arrived < ? AND (" + settled + ")"
            self._db.execute(f"DELETE FROM trust WHERE id IN (SELECT id FROM {forgotten})", (forget_before,))
            self._db.execute(f"DELETE FROM {forgotten}", (forget_before,))
            self._db.execute(
                "UPDATE feedback SET data = x'' WHERE arrived < ? AND data != x'' AND (" + settled + ")", (older_than,)
            )
            self._db.execute(
                "DELETE FROM pairs WHERE round IN (SELECT id FROM round WHERE started < ? AND state = 'finished')",
                (older_than,),
            )
            return self._db.execute(
                f"DELETE FROM response WHERE arrived < ? AND NOT EXISTS ({unclaimed}response = response.id)"
                f" AND NOT EXISTS ({unclaimed}worse = response.id)"
                f" AND NOT EXISTS ({unclaimed}conversation = response.conversation AND f.response = '')",
                (older_than if responses_before is None else responses_before,),
            ).rowcount

    def _claimable(self, held: Collection[int] | None) -> str:
        return f"round IS NULL AND delay IS NOT NULL AND delay <= {self._late_ms}{_within(held)}"

    def _assign(self, round_id: int, feedback_ids: Iterable[str]) -> None:
        for name in feedback_ids:
            self._db.execute("UPDATE feedback SET round = ? WHERE id = ?", (round_id, name))

    def _join(self, stored: Iterable[bytes]) -> list[Joined]:
        feedback = distinct(events_pb2.FeedbackEvent.FromString(data) for data in stored)
        names = {name for event in feedback for name in named_responses(event)}
        talks = {event.feedback.conversation_id for event in feedback if not event.feedback.response_id}
        responses = {}
        for column, wanted in (("id", names), ("conversation", talks)):
            for group in _groups(sorted(wanted)):
                marks = ",".join("?" * len(group))
                for (data,) in self._db.rows(f"SELECT data FROM response WHERE {column} IN ({marks})", group):
                    response = events_pb2.ResponseEvent.FromString(data)
                    responses[response.response_id] = response
        return join(feedback, responses.values())[0]


def _within(held: Collection[int] | None) -> str:
    """A condition on the partition. What an earlier release stored without one belongs to whoever has it."""
    if held is None:
        return ""
    return f" AND (part IS NULL OR part IN ({','.join(str(int(part)) for part in sorted(held))}))"


def _groups(items: list[str], size: int = 500) -> Iterator[list[str]]:
    for begin in range(0, len(items), size):
        yield items[begin : begin + size]
