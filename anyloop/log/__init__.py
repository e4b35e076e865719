"""The event log: one interface, an embedded implementation on SQLite, and a durable local outbox in front of it."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from anyloop.log.errors import CommitFailed, EventTooLarge, LogError, PoisonEvent, SpoolFull, UnknownTopic
from anyloop.log.events import Event, Position, Record
from anyloop.log.interface import (
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
    """Opens `sqlite:///absolute/path` (created where missing). Topics are not created: see `ensure_topics`.

    Raises ValueError for a URL of another kind.
    """
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        if parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise ValueError(f"log URL {url!r} needs an absolute path: sqlite:///var/lib/anyloop/log.db")
        from anyloop.log.sqlite_log import SqliteLog

        return SqliteLog(Path(unquote(parts.path)))
    if parts.scheme == "kafka":
        raise ValueError(
            f"log URL {url!r}: this release has no Kafka log; set ANYLOOP_LOG_URL to sqlite:///absolute/path/log.db"
        )
    raise ValueError(f"log URL {url!r} has an unknown scheme: use sqlite:///absolute/path/log.db")
