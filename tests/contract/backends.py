"""How a process of the contract suite opens the log named by its first two arguments."""

from pathlib import Path

from anyloop.log import EventLog
from anyloop.log.kafka import KafkaLog
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from anyloop.log.sqlite_log import SqliteLog


def open_backend(kind: str, address: str, session_timeout: float | None = None) -> EventLog:
    if kind == "sqlite":
        options = {} if session_timeout is None else {"session_timeout": session_timeout}
        return SqliteLog(Path(address), **options)
    if kind == "kafka":
        settings = KafkaSettings() if session_timeout is None else KafkaSettings(session_timeout_s=session_timeout)
        return KafkaLog(KafkaAddress.from_url(address), settings)
    raise ValueError(f"no backend {kind!r}")
