"""One connection to the log's database: schema, transactions, and errors as the log's own.

WAL mode lets one process write while others read; `synchronous=FULL` makes a commit reach the disk before it returns,
so what was acknowledged survives a killed process and a power failure.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from anyloop.log.errors import LogError
from anyloop.log.events import Event, Record

RECORD_COLUMNS = "part, pos, time, key, attributes, data"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BUSY_SECONDS = 30.0
_SCHEMA_VERSION = 1

# `time` is in microseconds since the epoch. A lease says which member of a group holds a partition; it is valid as long
# as it stands there, and only the member itself removes it, or others once the member's row has expired.
_SCHEMA = """
CREATE TABLE IF NOT EXISTS topics (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL, compacted INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS partitions (
    topic_id INTEGER NOT NULL, part INTEGER NOT NULL, next_offset INTEGER NOT NULL, last_time INTEGER NOT NULL,
    PRIMARY KEY (topic_id, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS records (
    seq INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, part INTEGER NOT NULL, pos INTEGER NOT NULL,
    time INTEGER NOT NULL, key TEXT NOT NULL, attributes TEXT NOT NULL, data BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS records_by_offset ON records (topic_id, part, pos);
CREATE INDEX IF NOT EXISTS records_by_time ON records (topic_id, part, time);
CREATE TABLE IF NOT EXISTS commits (
    grp TEXT NOT NULL, topic_id INTEGER NOT NULL, part INTEGER NOT NULL, pos INTEGER NOT NULL,
    PRIMARY KEY (grp, topic_id, part)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS members (
    grp TEXT NOT NULL, member TEXT NOT NULL, topic_id INTEGER NOT NULL, expires INTEGER NOT NULL,
    PRIMARY KEY (grp, member, topic_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    grp TEXT NOT NULL, topic_id INTEGER NOT NULL, part INTEGER NOT NULL, member TEXT NOT NULL,
    PRIMARY KEY (grp, topic_id, part)
) WITHOUT ROWID;
"""

# Result codes after which the same statement may succeed: busy, locked, full disk, I/O error, cannot open (permissions,
# a volume that is not mounted yet), interrupted.
_RETRIABLE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_INTERRUPT,
}


@contextmanager
def _log_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise LogError(f"log {path}: {error}", retriable=code in _RETRIABLE) from error


class Database:
    """A connection that threads share under `lock`. All SQL errors leave as LogError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(f"log {path}: its folder cannot be created: {error}") from error
        with _log_errors(path):
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
        try:
            with _log_errors(path):
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        self._enter_wal_mode()
        execute("PRAGMA synchronous=FULL")
        execute("PRAGMA fullfsync=ON")  # macOS: fsync alone stops at the drive's cache
        execute(f"PRAGMA journal_size_limit={64 * 2**20}")
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > _SCHEMA_VERSION:
            raise LogError(f"log {self.path} was written by a later release (schema {version})")
        if version < _SCHEMA_VERSION:
            with self.transaction():
                for statement in _SCHEMA.split(";"):
                    execute(statement)
                execute(f"PRAGMA user_version={_SCHEMA_VERSION}")
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # the database file itself must survive a power failure
            finally:
                os.close(descriptor)

    def _enter_wal_mode(self) -> None:
        # Switching a new file to WAL does not wait on the busy timeout when several processes do it at once.
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                mode = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise LogError(f"log {self.path}: the file system offers no WAL mode; put it on a local disk")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A write transaction; commits on a normal exit, rolls back otherwise."""
        with self._begun("BEGIN IMMEDIATE"):
            yield

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads inside see the same state."""
        with self._begun("BEGIN"):
            yield

    @contextmanager
    def _begun(self, statement: str) -> Iterator[None]:
        with self.lock, _log_errors(self.path):
            self._connection.execute(statement)
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Returns the number of rows changed."""
        with self.lock, _log_errors(self.path):
            return self._connection.execute(sql, parameters).rowcount

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self.lock, _log_errors(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    def data_version(self) -> int:
        """Changes whenever another connection has committed. Costs some microseconds: no query, no disk."""
        return int(self.rows("PRAGMA data_version")[0][0])

    def close(self) -> None:
        with self.lock:
            self._connection.close()


def record_of(topic: str, row: Sequence[Any]) -> Record:
    """From the values of RECORD_COLUMNS."""
    part, offset, appended, key, attributes, data = row
    event = Event.from_attributes(json.loads(attributes), key=key, data=data)
    return Record(topic, part, offset, _EPOCH + timedelta(microseconds=appended), event)


def microseconds(moment: datetime) -> int:
    """As stored: since the epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
