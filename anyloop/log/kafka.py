"""The log on Apache Kafka: one topic per kind of event, shared by all machines of a deployment."""

import itertools
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from anyloop.log import kafka_topics
from anyloop.log.errors import LogError, UnknownTopic
from anyloop.log.events import Event, Position, Record
from anyloop.log.interface import EventLog, Start, check_size, check_span
from anyloop.log.kafka_cluster import KafkaCluster
from anyloop.log.kafka_consumer import KafkaGroupConsumer
from anyloop.log.kafka_producer import KafkaAppender
from anyloop.log.kafka_reader import KafkaReader, Span
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from anyloop.log.topics import TOPICS, TopicChange, TopicSpec
from anyloop.telemetry import metrics


class KafkaLog(EventLog):
    """Connects at the first operation, not before: with the brokers away, each operation raises a retriable LogError
    after `settings.timeout_s`, and the next one tries again."""

    def __init__(self, address: KafkaAddress, settings: KafkaSettings | None = None) -> None:
        self._address = address
        self._settings = settings or KafkaSettings()
        self._cluster = KafkaCluster(address, self._settings)
        self._appender = KafkaAppender(address, self._settings)
        self._reader = KafkaReader(address, self._settings)
        self._consumers: weakref.WeakSet[KafkaGroupConsumer] = weakref.WeakSet()
        self._closed = False

    def plan_topics(self, specs: Iterable[TopicSpec] = TOPICS) -> list[TopicChange]:
        wanted = list(specs)
        return self._cluster.ask(lambda admin: kafka_topics.plan(admin, self._address.prefix, wanted), "topics")

    def _change_topics(self, specs: Sequence[TopicSpec], changes: Sequence[TopicChange]) -> list[TopicChange]:
        self._cluster.ask(lambda admin: kafka_topics.change(admin, self._address.prefix, specs, changes), "topics")
        return list(changes)

    def append(self, topic: str, event: Event) -> Position:
        return self.append_many(topic, [event])[0]

    def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
        for event in events:
            check_size(event)
        began = time.monotonic()
        try:
            partitions = self._partitions(topic)
            positions = self._appender.append(self._cluster.name(topic), topic, partitions, events)
        except LogError as error:
            if isinstance(error, UnknownTopic):
                self._cluster.forget(topic)
            metrics.LOG_APPEND_ERRORS.labels(topic, type(error).__name__).inc()
            raise
        metrics.LOG_APPENDED_EVENTS.labels(topic).inc(len(events))
        metrics.LOG_APPEND.labels(topic).observe(time.monotonic() - began)
        return positions

    def consumer(self, group: str, topics: Sequence[str], *, start: Start = "earliest") -> KafkaGroupConsumer:
        if not group or not topics:
            raise ValueError("a consumer needs a group and at least one topic")
        widths = {topic: self._partitions(topic) for topic in topics}
        begin = {}
        if start == "latest":
            begin = {(topic, part): end for topic in widths for part, end in self.end_offsets(topic).items()}
        consumer = KafkaGroupConsumer(self, self._cluster, self._address, self._settings, group, widths, begin)
        self._consumers.add(consumer)
        if self._closed:  # while it was made: `close` may have missed it
            consumer.close()
            raise LogError(f"{self._cluster.where}: this log is closed")
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
        """As the interface says; across partitions in the order of the brokers' clocks, to the millisecond."""
        count = self._partitions(topic)
        check_span(topic, count, partition, offset, since)
        parts = range(count) if partition is None else [partition]
        ends = self._cluster.end_offsets(topic, parts)
        begins = dict.fromkeys(parts, offset or 0)
        if since is not None:
            begins = self._cluster.offsets_since(topic, parts, since)
        spans = [Span(part, begin, ends[part]) for part, begin in begins.items()]
        return itertools.islice(self._reader.records(self._cluster.name(topic), topic, spans), limit)

    def end_offsets(self, topic: str) -> dict[int, int]:
        return self._cluster.end_offsets(topic, range(self._partitions(topic)))

    def begin_offsets(self, topic: str) -> dict[int, int]:
        return self._cluster.begin_offsets(topic, range(self._partitions(topic)))

    def committed(self, group: str, topic: str) -> dict[int, int]:
        return self._cluster.committed(group, topic)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for consumer in list(self._consumers):
                consumer.close()
            self._appender.close()
            self._reader.close()
            self._cluster.close()

    def _partitions(self, topic: str) -> int:
        if self._closed:
            raise LogError(f"{self._cluster.where}: this log is closed")
        return self._cluster.partitions(topic)
