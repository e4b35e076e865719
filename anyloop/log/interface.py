"""The event log, whatever stores it.

Delivery is at least once: an append that failed half-way may be repeated, and records handed out but not committed are
handed out again. Effects become exactly-once at the consumer, by event ids and by offsets kept with the effect.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Literal, Self

from anyloop.log.errors import CommitFailed, EventTooLarge, LogError, PoisonEvent, SpoolFull, UnknownTopic
from anyloop.log.events import Event, Position, Record
from anyloop.log.topics import (
    AUDIT,
    CHECKPOINTS,
    CRITIQUES,
    FEEDBACK,
    RESPONSES,
    TOPICS,
    TopicChange,
    TopicSpec,
    dlq,
    refused,
)

__all__ = [
    "AUDIT",
    "CHECKPOINTS",
    "CRITIQUES",
    "FEEDBACK",
    "MAX_EVENT_BYTES",
    "RESPONSES",
    "TOPICS",
    "CommitFailed",
    "Consumer",
    "EventLog",
    "EventTooLarge",
    "LogError",
    "PoisonEvent",
    "Position",
    "Record",
    "SpoolFull",
    "Start",
    "TopicChange",
    "TopicPartition",
    "TopicSpec",
    "UnknownTopic",
    "dlq",
]

# Kafka's default message.max.bytes is 1,048,588 with its headers; the embedded log refuses what Kafka would refuse.
MAX_EVENT_BYTES = 1_000_000


def check_size(event: Event) -> None:
    """Raises EventTooLarge."""
    size = len(event.data) + len(event.key.encode())
    if size > MAX_EVENT_BYTES:
        raise EventTooLarge(f"event {event.id} has {size} bytes; the log takes up to {MAX_EVENT_BYTES}")


def check_span(topic: str, partitions: int, partition: int | None, offset: int | None, since: datetime | None) -> None:
    """The arguments of `EventLog.read`, for a topic of so many partitions. Raises ValueError."""
    if offset is not None and (partition is None or since is not None or offset < 0):
        raise ValueError("an offset is 0 or more, needs a partition and excludes since")
    if partition is not None and not 0 <= partition < partitions:
        raise ValueError(f"topic {topic} has partitions 0 to {partitions - 1}, not {partition}")
    if since is not None and since.tzinfo is None:
        raise ValueError("since must carry a time zone")


TopicPartition = tuple[str, int]
Start = Literal["earliest", "latest"]


class EventLog(ABC):
    """Thread-safe. One instance per process is enough; any number of processes may share the log behind it."""

    @abstractmethod
    def plan_topics(self, specs: Iterable[TopicSpec] = TOPICS) -> list[TopicChange]:
        """What has to change for these topics to be as specified, in the order of the specs; nothing is changed."""

    def apply_topics(self, specs: Iterable[TopicSpec] = TOPICS) -> list[TopicChange]:
        """Creates the topics that are missing, sets what differs, and returns what was done. Idempotent.

        LogError, before anything is changed, where one exists with another number of partitions: keys would move.
        """
        wanted = list(specs)
        changes = self.plan_topics(wanted)
        if error := refused(changes):
            raise error
        return self._change_topics(wanted, changes) if changes else []

    @abstractmethod
    def _change_topics(self, specs: Sequence[TopicSpec], changes: Sequence[TopicChange]) -> list[TopicChange]:
        """Carries out a plan that refuses nothing, and returns what it did. What another process did meanwhile is no
        error, and may or may not be among it."""

    def ensure_topics(self, specs: Iterable[TopicSpec] = TOPICS) -> list[str]:
        """`apply_topics`; returns the names of those that were created."""
        return [change.topic for change in self.apply_topics(specs) if change.action == "create"]

    @abstractmethod
    def append(self, topic: str, event: Event) -> Position:
        """Durable when it returns. The key decides the partition as Kafka's default partitioner does (murmur2).

        Raises UnknownTopic, EventTooLarge, or LogError (see `retriable`). A repeated event id is appended again.
        """

    def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
        """Appends in order, all durable when it returns. When it raises, any prefix may have been appended."""
        return [self.append(topic, event) for event in events]

    @abstractmethod
    def consumer(self, group: str, topics: Sequence[str], *, start: Start = "earliest") -> "Consumer":
        """Joins a consumer group; its live members share out the partitions. `start` is where a partition begins that
        the group has never committed. Raises UnknownTopic."""

    @abstractmethod
    def read(
        self,
        topic: str,
        *,
        partition: int | None = None,
        offset: int | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> Iterator[Record]:
        """Replays, without a group, what the topic holds at the moment of the call.

        From `offset` (which needs `partition`), or from the first record of each partition appended at or after
        `since` (aware), or from the beginning. Order holds within a partition. Raises UnknownTopic, ValueError.
        """

    @abstractmethod
    def end_offsets(self, topic: str) -> dict[int, int]:
        """For each partition the offset that the next append will get."""

    @abstractmethod
    def begin_offsets(self, topic: str) -> dict[int, int]:
        """For each partition an offset before which retention has left nothing; its end where it holds nothing."""

    @abstractmethod
    def committed(self, group: str, topic: str) -> dict[int, int]:
        """For each partition that the group ever committed, the next offset it will read."""

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Records in these topics that the group has not committed, but for those that retention has removed."""
        total = 0
        for topic in topics:
            committed = self.committed(group, topic)
            ends = self.end_offsets(topic)
            if any(end > committed.get(part, 0) for part, end in ends.items()):
                begins = self.begin_offsets(topic)
                total += sum(max(0, end - max(committed.get(p, 0), begins.get(p, 0))) for p, end in ends.items())
        return total

    @abstractmethod
    def close(self) -> None:
        """Closes the consumers too. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Consumer(ABC):
    """One member of a consumer group. Heartbeats run on a thread of their own, so long work between polls is fine;
    the other methods belong to one thread. Offsets are always those of the next record to read, as in Kafka."""

    @abstractmethod
    def poll(self, max_records: int = 500, timeout: float = 1.0) -> list[Record]:
        """The next records of the partitions this member holds; empty after `timeout` seconds without any.

        Joining, leaving and takeover happen in here. No other live member gets these records before they are
        committed, unless this member stops polling-and-committing while the group wants the partition elsewhere.
        """

    @abstractmethod
    def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        """Commits everything polled, or exactly `offsets`. Raises CommitFailed when a partition has moved away."""

    @abstractmethod
    def seek(self, topic: str, partition: int, offset: int) -> None:
        """The next poll reads from here; for a partition not held yet, from when it is."""

    @abstractmethod
    def positions(self) -> dict[TopicPartition, int]:
        """The partitions held, and the offset each will read next."""

    @abstractmethod
    def dead_letter(self, record: Record, reason: str) -> Position:
        """Appends the event to the dead-letter topic with the reason and its origin. Commit as for any other record."""

    @abstractmethod
    def close(self) -> None:
        """Leaves the group at once, without committing. Idempotent."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
