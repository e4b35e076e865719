"""Appending to Kafka: one idempotent producer that all threads share; each waits for its own acknowledgements.

The producer repeats a batch until the brokers have acknowledged it, with the sequence number they know it by, so that
a lost answer repeats nothing. A caller that runs out of patience before gets a retriable error, its events stay with
the producer, and when the same events are appended again their fate is looked up instead of sending them twice.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka

from anyloop.log.errors import LogError, UnknownTopic
from anyloop.log.events import Event, Position
from anyloop.log.kafka_access import check_access
from anyloop.log.kafka_clients import connect
from anyloop.log.kafka_errors import translate
from anyloop.log.kafka_events import headers_of
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from anyloop.log.partition import partition_of

_MAX_UNSETTLED_BYTES = 64 * 2**20  # of events of appends that failed, kept for their repetition
_CLOSE_SECONDS = 2.0
_ACCESS_SECONDS = 1.0
_STEP_SECONDS = 0.005
_TOO_LARGE = (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)

_Fact = tuple[str, str, str, bytes]  # topic, id, key, data: wrapped anew, an event has another time
Future = Any  # kafka.producer.future.FutureRecordMetadata: `get(seconds)`, `is_done`, `exception`


class KafkaAppender:
    """Thread-safe. Connects at the first append."""

    def __init__(self, address: KafkaAddress, settings: KafkaSettings) -> None:
        self._address = address
        self._settings = settings
        self._where = f"kafka {','.join(address.servers)}"
        self._connecting = threading.Lock()
        self._lock = threading.Lock()  # guards what follows
        self._producer: KafkaProducer | None = None
        self._unsettled: dict[_Fact, deque[Future]] = {}
        self._unsettled_bytes = 0
        self._closed = False

    def append(self, name: str, topic: str, partitions: int, events: Sequence[Event]) -> list[Position]:
        """`name` is the topic as the cluster calls it. All durable when it returns; raises LogError."""
        deadline = time.monotonic() + self._settings.timeout_s
        doing = f"{self._where}: append to {topic}"
        producer = self._connected(deadline, doing)
        sent: list[tuple[Event, Future]] = []
        try:
            for event in events:
                future = self._earlier(topic, event)
                if future is None:
                    self._check_room(doing)
                    future = self._send(producer, name, partitions, event)
                sent.append((event, future))
            return [_position(topic, future.get(max(0.0, deadline - time.monotonic()))) for _, future in sent]
        except (kafka.KafkaError, LogError, OSError, RuntimeError, ValueError) as error:
            self._remember(topic, sent)
            if self._closed:
                raise LogError(f"{self._where}: this log is closed") from error
            if isinstance(error, ValueError):  # no such partition: the topic has been made anew, with fewer
                raise LogError(f"{doing}: {error}", retriable=True) from error
            if any(_failed(future) for _, future in sent):
                self._replace(producer)
            if isinstance(error, _TOO_LARGE) and len(sent) == len(events):
                return self._append_apart(name, topic, partitions, events, deadline)
            if sent and producer._metadata.partitions_for_topic(name) is None:
                raise UnknownTopic(topic) from error  # deleted meanwhile
            if isinstance(error, kafka.KafkaTimeoutError):
                # Credentials that a broker refuses after its restart look like a broker that is away.
                check_access(self._address, self._settings, _ACCESS_SECONDS)
            raise translate(error, doing) from error

    def _append_apart(
        self, name: str, topic: str, partitions: int, events: Sequence[Event], deadline: float
    ) -> list[Position]:
        """In smaller and smaller parts. A record that the brokers find too large breaks kafka-python's idempotent
        producer, and all that waits there fails as too large (docs/kafka-python.md): this tells which one it is, by a
        producer for each halving. One partition at a time, so that nothing else is under way when that happens."""
        shares: dict[int, list[int]] = {}
        for index, event in enumerate(events):
            shares.setdefault(partition_of(event.key, partitions), []).append(index)
        parts = list(shares.values())
        fates: dict[int, Future] = {}
        producer: KafkaProducer | None = None
        try:
            while parts:
                part = parts.pop()
                try:
                    for index in part:
                        future = self._earlier(topic, events[index])
                        if future is None:
                            producer = producer or self._new_producer(deadline)
                            future = self._send(producer, name, partitions, events[index])
                        fates[index] = future
                    for index in part:
                        fates[index].get(max(0.0, deadline - time.monotonic()))
                except _TOO_LARGE as error:
                    if len(part) == 1:
                        doing = f"{self._where}: append to {topic}: event {events[part[0]].id}"
                        raise translate(error, doing) from error
                    if producer is not None:
                        _end(producer)
                        producer = None
                    failed = [index for index in part if index not in fates or _failed(fates[index])]
                    for index in failed:
                        fates.pop(index, None)
                    half = (len(failed) + 1) // 2
                    parts += [share for share in (failed[half:], failed[:half]) if share]
            return [_position(topic, fates[index].value) for index in range(len(events))]
        except (kafka.KafkaError, LogError, OSError, RuntimeError) as error:
            self._remember(topic, [(events[index], future) for index, future in fates.items()])
            raise translate(error, f"{self._where}: append to {topic}") from error
        finally:
            if producer is not None:
                _end(producer)

    def _send(self, producer: KafkaProducer, name: str, partitions: int, event: Event) -> Future:
        return producer.send(
            name,
            value=event.data,
            key=event.key.encode(),
            headers=headers_of(event),
            partition=partition_of(event.key, partitions),
        )

    def _earlier(self, topic: str, event: Event) -> Future | None:
        """The future of this event from an append that failed: it is in the log already, or the producer still repeats
        it. None where nothing is known of it, or where it is known not to have been appended."""
        if not self._unsettled:
            return None
        fact = _fact(topic, event)
        with self._lock:
            futures = self._unsettled.get(fact, deque())
            while futures:
                future = futures.popleft()
                self._unsettled_bytes -= _size(fact)
                if not futures:
                    del self._unsettled[fact]
                if not _failed(future):
                    return future
        return None

    def _remember(self, topic: str, sent: Sequence[tuple[Event, Future]]) -> None:
        with self._lock:
            for event, future in sent:
                if not _failed(future):
                    fact = _fact(topic, event)
                    self._unsettled.setdefault(fact, deque()).append(future)
                    self._unsettled_bytes += _size(fact)

    def _check_room(self, doing: str) -> None:
        if self._unsettled_bytes <= _MAX_UNSETTLED_BYTES:
            return
        with self._lock:
            self._forget_settled()
            if self._unsettled_bytes > _MAX_UNSETTLED_BYTES:
                raise LogError(f"{doing}: {self._unsettled_bytes} bytes wait for the brokers already", retriable=True)

    def _forget_settled(self) -> None:
        """The oldest: nobody came back for them. They are in the log, or the producer has given them up."""
        for fact, futures in list(self._unsettled.items()):
            if self._unsettled_bytes <= _MAX_UNSETTLED_BYTES:
                return
            if all(future.is_done for future in futures):
                del self._unsettled[fact]
                self._unsettled_bytes -= _size(fact) * len(futures)

    def _connected(self, deadline: float, doing: str) -> KafkaProducer:
        producer = self._producer
        if producer is not None:
            return producer
        if not self._connecting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise LogError(f"{doing}: another thread still tries to connect", retriable=True)
        try:
            if self._closed:
                raise LogError(f"{self._where}: this log is closed")
            if self._producer is None:
                try:
                    self._install(self._new_producer(deadline))
                except (kafka.KafkaError, OSError, RuntimeError) as error:
                    raise translate(error, doing) from error
            producer = self._producer
            if producer is None:  # closed, or replaced by another thread that has used it meanwhile
                raise LogError(f"{doing}: the connection was given up", retriable=True)
            return producer
        finally:
            self._connecting.release()

    def _install(self, producer: KafkaProducer) -> None:
        with self._lock:
            if not self._closed:
                self._producer = producer
                return
        _end(producer)
        raise LogError(f"{self._where}: this log is closed")

    def _new_producer(self, deadline: float) -> KafkaProducer:
        left_ms = max(1, round((deadline - time.monotonic()) * 1000))
        config = self._settings.producer() | {"bootstrap_timeout_ms": left_ms}
        producer = connect(KafkaProducer, self._address, self._settings, config)
        # After a fatal error kafka-python fails what is under way too, which the brokers may append all the same: sent
        # again it would be there twice. Only what was not sent is failed here; the rest gets its answer.
        producer._sender._maybe_abort_batches = producer._accumulator.abort_undrained_batches
        return producer

    def _replace(self, producer: KafkaProducer) -> None:
        """A batch that failed for good must not be overtaken by those behind it, and a producer with a fatal error
        takes nothing more: its waiting batches fail too, and their callers repeat them in order on the next one."""
        with self._lock:
            if self._producer is not producer:
                return
            self._producer = None
        _end(producer)

    def close(self) -> None:
        """Events without an acknowledgement by then may or may not be in the log: their append has said so."""
        with self._lock:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            _end(producer)


def _fact(topic: str, event: Event) -> _Fact:
    return topic, event.id, event.key, event.data


def _size(fact: _Fact) -> int:
    return len(fact[2]) + len(fact[3]) + 1000  # the objects around it


def _failed(future: Future) -> bool:
    return bool(future.is_done and future.exception is not None)


def _position(topic: str, metadata: Any) -> Position:
    return Position(topic, metadata.partition, metadata.offset)


def _end(producer: KafkaProducer) -> None:
    if producer._transaction_manager.has_fatal_error():
        deadline = time.monotonic() + _CLOSE_SECONDS
        while producer._accumulator.has_incomplete and time.monotonic() < deadline:
            time.sleep(_STEP_SECONDS)
    # kafka-python's close() gives up, with its thread alive, while a batch waits for a broker that is away; a forced
    # one fails the batches and ends the thread (docs/kafka-python.md).
    with contextlib.suppress(kafka.KafkaError):
        producer.close(timeout=0.0 if producer._accumulator.has_undrained() else _CLOSE_SECONDS)
        return
    producer._sender.force_close()
    producer._sender.join(_CLOSE_SECONDS)
    with contextlib.suppress(kafka.KafkaError):
        producer.close(timeout=0.0)
