"""A consumer group on SQLite: members with heartbeats, partitions with leases.

Every member computes the same assignment from the members that are alive, gives up what is not its own and takes what
nobody holds; a lease is never taken from a living member. So each partition has one reader at a time, and a rebalance
between living members repeats nothing that they commit.
"""

import logging
import threading
import time
import uuid
from collections.abc import Mapping

from anyloop.log.dead_letters import send_dead_letter
from anyloop.log.errors import CommitFailed, LogError
from anyloop.log.events import Position, Record
from anyloop.log.interface import Consumer, EventLog, TopicPartition
from anyloop.log.sqlite_database import RECORD_COLUMNS, Database, record_of

logger = logging.getLogger(__name__)

_WAKE_SECONDS = 0.05


class SqliteConsumer(Consumer):
    def __init__(
        self,
        log: EventLog,
        database: Database,
        group: str,
        topics: Mapping[int, str],
        begin: Mapping[TopicPartition, int],
        *,
        session_timeout: float,
    ) -> None:
        self._log = log
        self._database = database
        self._group = group
        self._topics = dict(topics)
        self._ids = {name: topic_id for topic_id, name in topics.items()}
        self._begin = dict(begin)  # where a partition starts that the group never committed
        self._timeout = session_timeout
        self._lock = threading.RLock()  # guards all that follows; the heartbeat thread shares it
        self._positions: dict[TopicPartition, int] = {}  # held partitions
        self._delivered: dict[TopicPartition, int] = {}  # handed out, not committed
        self._lost: set[TopicPartition] = set()  # went to another member since the last poll
        self._leaving: dict[TopicPartition, float] = {}  # to be handed over once committed, or by this time
        self._seeks: dict[TopicPartition, int] = {}
        self._turn = 0
        self._failure: LogError | None = None
        self._closing = threading.Event()
        self._join()
        self._heart = threading.Thread(target=self._heartbeats, name=f"heartbeat-{group}", daemon=True)
        self._heart.start()

    # --- reading

    def poll(self, max_records: int = 500, timeout: float = 1.0) -> list[Record]:
        deadline = time.monotonic() + timeout
        with self._lock:
            for lost in self._lost:
                self._delivered.pop(lost, None)
            self._lost.clear()
        while True:
            with self._lock:
                self._check()
                version = self._database.data_version()
                self._rebalance(hand_over_late=True)
                records = self._fetch(max_records)
            if records:
                return records
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return []
            # Look around now and then even if nothing is written: members expire silently.
            self._wait(version, min(remaining, self._timeout / 3))

    def _fetch(self, limit: int) -> list[Record]:
        records: list[Record] = []
        self._turn += 1
        with self._database.snapshot():
            # In the same snapshot as the records: a process that was stopped for long must not deliver on old leases.
            mine = self._leased()
            held = sorted(tp for tp in self._positions if tp in mine and tp not in self._leaving)
            turn = self._turn % len(held) if held else 0
            for topic, part in held[turn:] + held[:turn]:
                rows = self._database.rows(
                    f"SELECT {RECORD_COLUMNS} FROM records "
                    "WHERE topic_id = ? AND part = ? AND pos >= ? ORDER BY pos LIMIT ?",
                    (self._ids[topic], part, self._positions[topic, part], limit - len(records)),
                )
                records += [record_of(topic, row) for row in rows]
                if rows:
                    self._positions[topic, part] = self._delivered[topic, part] = rows[-1][1] + 1
                if len(records) >= limit:
                    break
        return records

    def _wait(self, version: int, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self._closing.wait(min(_WAKE_SECONDS, left)):
            with self._lock:
                self._check()
                if self._database.data_version() != version:
                    return

    # --- offsets

    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        with self._lock:
            self._check()
            chosen = dict(self._delivered if offsets is None else offsets)
            if any(offset < 0 for offset in chosen.values()):
                raise ValueError("an offset is 0 or more")
            if not chosen:
                return
            with self._database.transaction():
                gone = (chosen.keys() - self._leased()) | (chosen.keys() & self._lost)
                if gone:
                    raise CommitFailed(f"group {self._group}: {sorted(gone)} moved to another consumer; poll again")
                for (topic, part), offset in chosen.items():
                    self._database.execute(
                        "INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)",
                        (self._group, self._ids[topic], part, offset),
                    )
            for tp, offset in chosen.items():
                if self._delivered.get(tp, offset) <= offset:
                    self._delivered.pop(tp, None)

    def seek(self, topic: str, partition: int, offset: int) -> None:
        if (topic, partition) not in self._begin or offset < 0:
            raise ValueError(f"no partition {partition} of {topic!r} in this subscription, or a negative offset")
        with self._lock:
            self._check()
            if (topic, partition) in self._positions:
                self._positions[topic, partition] = offset
            else:
                self._seeks[topic, partition] = offset

    def positions(self) -> dict[TopicPartition, int]:
        with self._lock:
            self._check()
            return dict(self._positions)

    def dead_letter(self, record: Record, reason: str) -> Position:
        return send_dead_letter(self._log, self._group, record, reason)

    # --- membership

    def _join(self) -> None:
        # The name sorts by age, so that a newcomer moves as few partitions as possible.
        self._member = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        with self._database.transaction():
            for topic_id in self._topics:
                self._database.execute(
                    "INSERT INTO members VALUES (?, ?, ?, ?)",
                    (self._group, self._member, topic_id, self._expiry()),
                )

    def _heartbeats(self) -> None:
        while not self._closing.wait(self._timeout / 3):
            with self._lock:
                try:
                    self._database.execute(
                        "UPDATE members SET expires = ? WHERE grp = ? AND member = ?",
                        (self._expiry(), self._group, self._member),
                    )
                    self._rebalance(hand_over_late=False)
                except LogError as error:
                    if error.retriable:
                        logger.warning("heartbeat of group %s failed, will try again: %s", self._group, error)
                    elif not self._closing.is_set():
                        logger.error("heartbeats of group %s stopped: %s", self._group, error)
                        self._failure = error
                        return

    def _rebalance(self, *, hand_over_late: bool) -> None:
        """Moves towards the assignment. Writes only when there is something to give, take or clean up."""
        with self._database.snapshot():
            members = self._database.rows(
                "SELECT topic_id, member, expires FROM members WHERE grp = ? ORDER BY member", (self._group,)
            )
            leases = self._leases()
        now = _now()
        if not any(member == self._member for _, member, _ in members):
            self._forget(set(self._positions))  # declared dead while this process was stopped
            self._join()
            return self._rebalance(hand_over_late=hand_over_late)
        # A member is alive to itself; its heartbeat may merely be late.
        alive = [(topic, member) for topic, member, expires in members if expires >= now or member == self._member]
        own = self._assigned(alive)
        self._forget({tp for tp in self._positions if leases.get(tp) != self._member})
        give = self._to_give(own, late=hand_over_late)
        living = {member for _, member in alive}
        take = {tp for tp in own if tp not in self._positions and leases.get(tp) not in living - {self._member}}
        if give or take or len(alive) < len(members):
            self._move(give, take)

    def _assigned(self, alive: list[tuple[int, str]]) -> set[TopicPartition]:
        # Partition p of every topic goes to the same member (Kafka's range assignment), so that a response and its
        # feedback, which share a key, meet in one process.
        own = set()
        for topic, part in self._begin:
            candidates = [member for topic_id, member in alive if topic_id == self._ids[topic]]
            if candidates[part % len(candidates)] == self._member:
                own.add((topic, part))
        return own

    def _to_give(self, own: set[TopicPartition], *, late: bool) -> set[TopicPartition]:
        now = time.monotonic()
        for tp in own & self._leaving.keys():
            del self._leaving[tp]
        for tp in self._positions.keys() - own:
            self._leaving.setdefault(tp, now + self._timeout)
        return {tp for tp, deadline in self._leaving.items() if tp not in self._delivered or (late and now >= deadline)}

    def _move(self, give: set[TopicPartition], take: set[TopicPartition]) -> None:
        execute, rows = self._database.execute, self._database.rows
        with self._database.transaction():
            execute(
                "UPDATE members SET expires = ? WHERE grp = ? AND member = ?",
                (self._expiry(), self._group, self._member),
            )
            execute("DELETE FROM members WHERE grp = ? AND expires < ?", (self._group, _now()))
            execute(
                "DELETE FROM leases WHERE grp = ?1 AND member NOT IN (SELECT member FROM members WHERE grp = ?1)",
                (self._group,),
            )
            for topic, part in give:
                execute(
                    "DELETE FROM leases WHERE grp = ? AND topic_id = ? AND part = ? AND member = ?",
                    (self._group, self._ids[topic], part, self._member),
                )
            for topic, part in take:
                execute(
                    "INSERT OR IGNORE INTO leases VALUES (?, ?, ?, ?)",
                    (self._group, self._ids[topic], part, self._member),
                )
            mine = self._leased()
            committed = {
                (self._topics[topic_id], part): offset
                for topic_id, part, offset in rows(
                    "SELECT topic_id, part, pos FROM commits WHERE grp = ?", (self._group,)
                )
                if topic_id in self._topics
            }
        self._forget(give)
        for tp in take & mine:
            self._positions[tp] = self._seeks.pop(tp, committed.get(tp, self._begin[tp]))

    def _forget(self, partitions: set[TopicPartition]) -> None:
        for tp in partitions:
            del self._positions[tp]
            self._leaving.pop(tp, None)
            if tp in self._delivered:
                self._lost.add(tp)

    def _leases(self) -> dict[TopicPartition, str]:
        rows = self._database.rows("SELECT topic_id, part, member FROM leases WHERE grp = ?", (self._group,))
        return {(self._topics[topic_id], part): member for topic_id, part, member in rows if topic_id in self._topics}

    def _leased(self) -> set[TopicPartition]:
        return {tp for tp, member in self._leases().items() if member == self._member}

    def _expiry(self) -> int:
        return _now() + int(self._timeout * 1e6)

    def _check(self) -> None:
        if self._failure is not None:
            raise LogError(f"the consumer of group {self._group} has failed: {self._failure}") from self._failure
        if self._closing.is_set():
            raise LogError(f"the consumer of group {self._group} is closed")

    def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        if self._heart is not threading.current_thread():
            self._heart.join()
        with self._lock:
            try:
                with self._database.transaction():
                    for table in ("leases", "members"):
                        self._database.execute(
                            f"DELETE FROM {table} WHERE grp = ? AND member = ?", (self._group, self._member)
                        )
            except LogError as error:
                logger.warning("left group %s without saying so, others wait for the timeout: %s", self._group, error)
            self._database.close()


def _now() -> int:
    """Microseconds. Wall time, because processes compare it; a clock that jumps can only cause a refused commit and a
    second delivery."""
    return time.time_ns() // 1000
