"""The embedded log: one SQLite file shared by all processes of a machine."""

import heapq
import itertools
import json
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from anyloop.log.errors import LogError, UnknownTopic
from anyloop.log.events import Event, Position, Record
from anyloop.log.interface import EventLog, Start, check_size, check_span
from anyloop.log.partition import partition_of
from anyloop.log.sqlite_consumer import SqliteConsumer
from anyloop.log.sqlite_database import RECORD_COLUMNS, Database, microseconds, record_of
from anyloop.log.topics import TOPICS, TopicChange, TopicSpec, other_partitions

_PAGE = 500  # records fetched by one query of a replay


@dataclass(frozen=True)
class Topic:
    id: int
    name: str
    partitions: int


@dataclass
class _Append:
    topic: Topic
    events: Sequence[Event]
    positions: list[Position] | None = None
    error: BaseException | None = None


class SqliteLog(EventLog):
    """`session_timeout` seconds after a consumer's last sign of life its partitions go to others."""

    def __init__(self, path: Path, *, session_timeout: float = 10.0) -> None:
        self._path = Path(path)
        self._session_timeout = session_timeout
        self._writer = Database(self._path)
        self._reader = Database(self._path)
        self._topics: dict[str, Topic] = {}
        self._queue: deque[_Append] = deque()
        self._queue_lock = threading.Lock()
        self._consumers: weakref.WeakSet[SqliteConsumer] = weakref.WeakSet()
        self._closed = False

    def plan_topics(self, specs: Iterable[TopicSpec] = TOPICS) -> list[TopicChange]:
        """LogError for a spec that asks for retention or for copies: this log keeps everything, once."""
        existing = {
            name: (count, bool(compacted))
            for name, count, compacted in self._reader.rows("SELECT name, partitions, compacted FROM topics")
        }
        changes = []
        for spec in specs:
            _refuse_what_needs_a_cluster(spec)
            if spec.name not in existing:
                changes.append(TopicChange(spec.name, "create", _described(spec)))
                continue
            count, compacted = existing[spec.name]
            if count != spec.partitions:
                changes.append(other_partitions(spec, count))
            elif compacted != spec.compacted:
                settings = {"compacted": str(int(spec.compacted))}
                changes.append(TopicChange(spec.name, "configure", f"compacted={spec.compacted}", settings=settings))
        return changes

    def _change_topics(self, specs: Sequence[TopicSpec], changes: Sequence[TopicChange]) -> list[TopicChange]:
        by_name = {spec.name: spec for spec in specs}
        with self._writer.transaction():
            return [change for change in changes if self._change(by_name[change.topic], change)]

    def _change(self, spec: TopicSpec, change: TopicChange) -> bool:
        if change.action == "create":
            return self._create(spec)
        self._writer.execute(
            "UPDATE topics SET compacted = ? WHERE name = ?", (change.settings["compacted"], spec.name)
        )
        return True

    def _create(self, spec: TopicSpec) -> bool:
        """False when another process was quicker."""
        created = self._writer.execute(
            "INSERT OR IGNORE INTO topics (name, partitions, compacted) VALUES (?, ?, ?)",
            (spec.name, spec.partitions, spec.compacted),
        )
        if not created:
            return False
        topic_id = self._writer.rows("SELECT id FROM topics WHERE name = ?", (spec.name,))[0][0]
        for part in range(spec.partitions):
            self._writer.execute("INSERT INTO partitions VALUES (?, ?, 0, 0)", (topic_id, part))
        return True

    def append(self, topic: str, event: Event) -> Position:
        return self.append_many(topic, [event])[0]

    def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
        for event in events:
            check_size(event)
        request = _Append(self._topic(topic), events)
        with self._queue_lock:
            self._queue.append(request)
        # Group commit: whoever gets the writer first commits all that wait, so that threads share one fsync.
        with self._writer.lock:
            if request.positions is None and request.error is None:
                with self._queue_lock:
                    batch = list(self._queue)
                    self._queue.clear()
                self._commit(batch)
        if request.positions is None:
            assert request.error is not None
            if isinstance(request.error, LogError):
                raise LogError(str(request.error), retriable=request.error.retriable) from request.error
            raise LogError(f"log {self._path}: the append was interrupted", retriable=True) from request.error
        return request.positions

    def _commit(self, batch: list[_Append]) -> None:
        try:
            with self._writer.transaction():
                positions = [self._insert(request) for request in batch]
        except LogError as error:
            for request in batch:
                request.error = error
        except BaseException as error:
            for request in batch:
                request.error = error
            raise
        else:
            for request, done in zip(batch, positions, strict=True):
                request.positions = done

    def _insert(self, request: _Append) -> list[Position]:
        topic = request.topic
        positions = []
        for event in request.events:
            part = partition_of(event.key, topic.partitions)
            offset, last_time = self._writer.rows(
                "SELECT next_offset, last_time FROM partitions WHERE topic_id = ? AND part = ?", (topic.id, part)
            )[0]
            appended = max(time.time_ns() // 1000, last_time)
            self._writer.execute(
                "INSERT INTO records (topic_id, part, pos, time, key, attributes, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (topic.id, part, offset, appended, event.key, json.dumps(event.attributes()), event.data),
            )
            self._writer.execute(
                "UPDATE partitions SET next_offset = ?, last_time = ? WHERE topic_id = ? AND part = ?",
                (offset + 1, appended, topic.id, part),
            )
            positions.append(Position(topic.name, part, offset))
        return positions

    def consumer(self, group: str, topics: Sequence[str], *, start: Start = "earliest") -> SqliteConsumer:
        if not group or not topics:
            raise ValueError("a consumer needs a group and at least one topic")
        found = [self._topic(name) for name in dict.fromkeys(topics)]
        begin = {
            (topic.name, part): end if start == "latest" else 0
            for topic in found
            for part, end in self.end_offsets(topic.name).items()
        }
        consumer = SqliteConsumer(
            self,
            Database(self._path),
            group,
            {topic.id: topic.name for topic in found},
            begin,
            session_timeout=self._session_timeout,
        )
        self._consumers.add(consumer)
        return consumer

    def read(
        self,
        topic: str,
        *,
        partition: int | None = None,
        offset: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        found = self._topic(topic)
        check_span(topic, found.partitions, partition, offset, since)
        ends = self.end_offsets(topic)
        pages = [
            self._read_partition(found, part, self._first(found, part, offset, since), ends[part])
            for part in ([partition] if partition is not None else range(found.partitions))
        ]
        # In the order of the appends over all partitions, since this log knows it.
        merged = heapq.merge(*pages, key=lambda row: row[0])
        return itertools.islice((record_of(topic, row[1:]) for row in merged), limit)

    def _first(self, topic: Topic, part: int, offset: int | None, since: datetime | None) -> int:
        if since is None:
            return offset or 0
        rows = self._reader.rows(
            "SELECT pos FROM records WHERE topic_id = ? AND part = ? AND time >= ? ORDER BY time, pos LIMIT 1",
            (topic.id, part, microseconds(since)),
        )
        # 2**62 lies beyond any end: nothing was appended since.
        return int(rows[0][0]) if rows else 2**62

    def _read_partition(self, topic: Topic, part: int, begin: int, end: int) -> Iterator[tuple[Any, ...]]:
        while begin < end:
            page = self._reader.rows(
                f"SELECT seq, {RECORD_COLUMNS} FROM records "
                "WHERE topic_id = ? AND part = ? AND pos >= ? AND pos < ? ORDER BY pos LIMIT ?",
                (topic.id, part, begin, end, _PAGE),
            )
            if not page:
                return
            yield from page
            begin = page[-1][2] + 1

    def end_offsets(self, topic: str) -> dict[int, int]:
        return dict(
            self._reader.rows("SELECT part, next_offset FROM partitions WHERE topic_id = ?", (self._topic(topic).id,))
        )

    def begin_offsets(self, topic: str) -> dict[int, int]:
        return dict(
            self._reader.rows(
                "SELECT part, coalesce((SELECT min(pos) FROM records WHERE topic_id = p.topic_id AND part = p.part), "
                "next_offset) FROM partitions p WHERE topic_id = ?",
                (self._topic(topic).id,),
            )
        )

    def committed(self, group: str, topic: str) -> dict[int, int]:
        return dict(
            self._reader.rows(
                "SELECT part, pos FROM commits WHERE grp = ? AND topic_id = ?", (group, self._topic(topic).id)
            )
        )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for consumer in list(self._consumers):
                consumer.close()
            self._writer.close()
            self._reader.close()

    def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            rows = self._reader.rows("SELECT id, name, partitions FROM topics WHERE name = ?", (name,))
            if not rows:
                raise UnknownTopic(name)
            topic = self._topics[name] = Topic(*rows[0])
        return topic


def _described(spec: TopicSpec) -> str:
    return f"{spec.partitions} partition(s)" + (", compacted" if spec.compacted else "")


def _refuse_what_needs_a_cluster(spec: TopicSpec) -> None:
    if spec.retention_hours is not None:
        raise LogError("the embedded log keeps every event: unset ANYLOOP_LOG_RETENTION_DAYS, or use Kafka")
    if max(spec.replication or 1, spec.min_insync or 1) > 1:
        raise LogError(
            "the embedded log is one file on one disk: unset ANYLOOP_LOG_REPLICATION and ANYLOOP_LOG_MIN_INSYNC, "
            "or use Kafka"
        )
