"""The event log: one interface, on SQLite (embedded) or Apache Kafka, and a durable local outbox in front of it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyloop.log.errors import CommitFailed, EventTooLarge, LogError, PoisonEvent, SpoolFull, UnknownTopic
from anyloop.log.events import Event, Position, Record
from anyloop.log.interface import (
    AUDIT,
    CHECKPOINTS,
    CRITIQUES,
    FEEDBACK,
    MAX_EVENT_BYTES,
    RESPONSES,
    TOPICS,
    Consumer,
    EventLog,
    TopicChange,
    TopicPartition,
    TopicSpec,
    dlq,
)
from anyloop.log.topics import topic_specs

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
    "Event",
    "EventLog",
    "EventTooLarge",
    "LogError",
    "PoisonEvent",
    "Position",
    "Record",
    "SpoolFull",
    "TopicChange",
    "TopicPartition",
    "TopicSpec",
    "UnknownTopic",
    "dlq",
    "open_log",
    "topic_specs",
]


def open_log(url: str) -> EventLog:
    """Opens `sqlite:///absolute/path` (created where missing) or `kafka://host:port[,host:port]/[PREFIX]`.

    Kafka's connection settings come from `ANYLOOP_KAFKA_*`; nothing connects before the first operation, and with the
    brokers away operations raise a retriable LogError. Topics are not created: see `apply_topics`.

    Raises ValueError for a URL of another kind, and for settings that contradict each other.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise ValueError(f"log URL {url!r} needs an absolute path: sqlite:///var/lib/anyloop/log.db")
        from anyloop.log.sqlite_log import SqliteLog

        return SqliteLog(Path(unquote(parts.path)))
    if parts.scheme == "kafka":
        from anyloop.log.kafka import KafkaLog
        from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

        return KafkaLog(KafkaAddress.from_url(url), KafkaSettings())
    raise ValueError(
        f"log URL {url!r} has an unknown scheme: use sqlite:///absolute/path/log.db or kafka://HOST:PORT/PREFIX"
    )
