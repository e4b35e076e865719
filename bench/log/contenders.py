"""What is measured: the log on SQLite, the log on Kafka, and kafka-python without us, with the same durability."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol

from kafka import KafkaProducer

from anyloop.log import RESPONSES, Event, EventLog, TopicSpec, open_log
from anyloop.log.kafka_events import headers_of
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

PARTITIONS = 4
EVENT_BYTES = 2048
_POOL = 2000  # events, used again and again: the log does not mind equal ids


def events(count: int = _POOL) -> list[Event]:
    """Of 2 KB each that do not compress, over many keys."""
    return [
        Event.from_attributes(
            {
                "id": f"chatcmpl-{number:032x}",
                "source": "services/policy",
                "type": "anyloop.v1.ResponseEvent",
                "time": "2026-01-01T00:00:00.000000+00:00",
            },
            key=f"conversation-{number * 7919 % 1000}",
            data=os.urandom(EVENT_BYTES),
        )
        for number in range(count)
    ]


class Contender(Protocol):
    """Thread-safe. `append` returns when all are acknowledged."""

    def append(self, numbers: Sequence[int]) -> None: ...

    def stored(self) -> int:
        """Events in the topic."""

    def close(self) -> None: ...


class OurLog:
    def __init__(self, url: str, pool: Sequence[Event]) -> None:
        self._log = prepared(url)
        self._pool = pool

    def append(self, numbers: Sequence[int]) -> None:
        self._log.append_many(RESPONSES, [self._pool[number] for number in numbers])

    def stored(self) -> int:
        return sum(self._log.end_offsets(RESPONSES).values())

    def close(self) -> None:
        self._log.close()


class BareKafka:
    """One idempotent producer, acks=all, the settings of our log, its own partitioner; the bytes of the same event,
    headers included, are made beforehand."""

    def __init__(self, url: str, pool: Sequence[Event]) -> None:
        self._log = prepared(url)
        address = KafkaAddress.from_url(url)
        self._topic = f"{address.prefix}{RESPONSES}"
        self._producer = KafkaProducer(bootstrap_servers=list(address.servers), **KafkaSettings().producer())
        self._ready: list[dict[str, Any]] = [
            {"value": event.data, "key": event.key.encode(), "headers": headers_of(event)} for event in pool
        ]

    def append(self, numbers: Sequence[int]) -> None:
        sent = [self._producer.send(self._topic, **self._ready[number]) for number in numbers]
        for future in sent:
            future.get(30)

    def stored(self) -> int:
        return sum(self._log.end_offsets(RESPONSES).values())

    def close(self) -> None:
        self._producer.close(5)
        self._log.close()


CONTENDERS: dict[str, type[OurLog] | type[BareKafka]] = {"sqlite": OurLog, "kafka": OurLog, "kafka-python": BareKafka}


def prepared(url: str) -> EventLog:
    """The log, with the topic."""
    log = open_log(url)
    log.ensure_topics([TopicSpec(RESPONSES, PARTITIONS)])
    return log
