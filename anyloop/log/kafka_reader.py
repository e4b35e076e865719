"""Replaying Kafka without a group: what given spans of partitions hold, merged by the time of their appends."""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kafka import KafkaConsumer, TopicPartition
from kafka import errors as kafka

from anyloop.log.errors import LogError
from anyloop.log.events import Record
from anyloop.log.kafka_clients import connect
from anyloop.log.kafka_errors import translate
from anyloop.log.kafka_events import record_of
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

_PAGE = 500  # records of one poll
_AHEAD = 4 * _PAGE  # records of a partition read ahead while another has none yet
_POLL_MS = 50
_IDLE = 4  # consumers kept for the next replay


@dataclass
class Span:
    """Offsets `begin` to `end`, the end left out. Some of them may hold no record: compaction, retention, markers."""

    partition: int
    begin: int
    end: int


class KafkaReader:
    """Thread-safe: each replay has a consumer of its own while it runs."""

    def __init__(self, address: KafkaAddress, settings: KafkaSettings) -> None:
        self._address = address
        self._settings = settings
        self._where = f"kafka {','.join(address.servers)}"
        self._lock = threading.Lock()
        self._idle: list[KafkaConsumer] = []
        self._closed = False

    def records(self, name: str, topic: str, spans: Sequence[Span]) -> Iterator[Record]:
        """`name` is the topic as the cluster calls it. In the order of each partition, and by time across them."""
        spans = [span for span in spans if span.begin < span.end]
        if not spans:
            return
        doing = f"{self._where}: read {topic}"
        whole = False
        consumer: KafkaConsumer | None = None
        try:
            consumer = self._take()
            yield from _Replay(consumer, name, topic, spans, self._settings.timeout_s).records()
            whole = True
        except GeneratorExit:
            whole = True
            raise
        except (kafka.KafkaError, OSError, RuntimeError) as error:
            raise translate(error, doing) from error
        finally:
            if consumer is not None:
                self._give_back(consumer, whole)

    def _take(self) -> KafkaConsumer:
        with self._lock:
            if self._closed:
                raise LogError(f"{self._where}: this log is closed")
            if self._idle:
                return self._idle.pop()
        config = self._settings.consumer() | {
            "auto_offset_reset": "earliest",  # past what retention has removed
            "max_poll_records": _PAGE,
            "fetch_max_wait_ms": 10,  # a replay reads what is there; a fetch at the end must not block the next replay
        }
        return connect(KafkaConsumer, self._address, self._settings, config)

    def _give_back(self, consumer: KafkaConsumer, whole: bool) -> None:
        with self._lock:
            if whole and not self._closed and len(self._idle) < _IDLE:
                self._idle.append(consumer)
                return
        _close(consumer)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for consumer in idle:
            _close(consumer)


class _Replay:
    def __init__(self, consumer: KafkaConsumer, name: str, topic: str, spans: Sequence[Span], patience: float) -> None:
        self._consumer = consumer
        self._topic = topic
        self._patience = patience
        self._ends = {TopicPartition(name, span.partition): span.end for span in spans}
        self._buffers: dict[TopicPartition, deque[Record]] = {tp: deque() for tp in self._ends}
        self._reading = set(self._ends)  # their end is not reached
        consumer.assign(list(self._ends))
        for span in spans:
            consumer.seek(TopicPartition(name, span.partition), span.begin)

    def records(self) -> Iterator[Record]:
        while True:
            self._fill()
            ready = [buffer for buffer in self._buffers.values() if buffer]
            if not ready:
                return
            first = min(ready, key=lambda buffer: (buffer[0].time, buffer[0].partition))
            yield first.popleft()

    def _fill(self) -> None:
        """Reads until each partition has its next record or is read to its end."""
        deadline = time.monotonic() + self._patience
        while any(not self._buffers[tp] for tp in self._reading):
            for tp in self._reading:
                (self._consumer.pause if len(self._buffers[tp]) >= _AHEAD else self._consumer.resume)(tp)
            polled = self._consumer.poll(timeout_ms=_POLL_MS, max_records=_PAGE)
            for tp, messages in polled.items():
                end = self._ends[tp]
                self._buffers[tp].extend(record_of(self._topic, m) for m in messages if m.offset < end)
            self._drop_finished()
            if polled:
                deadline = time.monotonic() + self._patience
            elif time.monotonic() >= deadline and any(not self._buffers[tp] for tp in self._reading):
                raise kafka.KafkaTimeoutError(f"no records within {self._patience:g} seconds")

    def _drop_finished(self) -> None:
        for tp in [tp for tp in self._reading if (self._consumer.position(tp, timeout_ms=0) or 0) >= self._ends[tp]]:
            self._reading.discard(tp)
            self._consumer.pause(tp)


def _close(consumer: KafkaConsumer) -> None:
    with contextlib.suppress(Exception):
        consumer.close(autocommit=False, timeout_ms=500)
