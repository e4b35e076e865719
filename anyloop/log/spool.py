"""A durable local outbox: events are safe on this machine's disk at once and reach the log when it is there.

`put` returns when the event is synced to a segment file. One thread drains the segments in order to the log and removes
them. After a crash the next process drains what is left; events between the last saved cursor and the crash are sent
again (at least once, same event id).
"""

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from itertools import groupby, islice
from pathlib import Path
from types import TracebackType
from typing import Self

from anyloop.log.errors import EventTooLarge, LogError, SpoolFull
from anyloop.log.events import Event
from anyloop.log.interface import MAX_EVENT_BYTES, EventLog
from anyloop.log.spool_segments import SUFFIX, SegmentCorrupted, SegmentWriter, encode, frames, sync_directory
from anyloop.telemetry import metrics

logger = logging.getLogger(__name__)

_SEGMENT_BYTES = 8 * 2**20
_BATCH = 200
_BACKOFF_SECONDS = (0.1, 10.0)  # first and longest wait after a failed append


class SpooledWriter:
    """`log_factory` is called on the draining thread, again and again while it raises LogError: the log may be away.

    The log it returns belongs to the writer. An event that the log finds too large is kept in `rejected/` with the
    reason; none is dropped. When the draining thread itself dies, `failure` says why; `put` goes on until the bound.
    """

    def __init__(self, log_factory: Callable[[], EventLog], directory: Path, max_bytes: int = 256 * 2**20) -> None:
        self._log_factory = log_factory
        self._directory = Path(directory)
        self._max_bytes = max_bytes
        self._directory.mkdir(parents=True, exist_ok=True)
        self._lock_file = self._acquire()
        left = self._segments()
        cursor_name, self._cursor = self._load_cursor()
        if not left or left[0].name != cursor_name:
            self._cursor = 0
        self._pending = sum(path.stat().st_size for path in left) - self._cursor
        # The cursor's own number counts although its segment is gone: a new segment of that name would be read from
        # the old cursor, and what stands before it would be lost.
        taken = [int(path.stem) for path in left] + [int(stem) for stem in [Path(cursor_name).stem] if stem.isdigit()]
        self._next_number = max(taken, default=-1) + 1
        self._state = threading.Condition()  # guards what follows
        self._writer: SegmentWriter | None = None
        self._closed = False
        self._sync_lock = threading.Lock()  # taken before _state, never inside it
        self._thread = threading.Thread(target=self._run, name="spool", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> Self:
        """Begins to drain, beginning with what an earlier process has left."""
        self._thread.start()
        return self

    def put(self, topic: str, event: Event) -> None:
        """On this machine's disk when it returns. Thread-safe; blocks for one fsync.

        Raises SpoolFull, EventTooLarge, or LogError when the disk refuses.
        """
        if len(event.data) + len(event.key.encode()) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"event {event.id} has {len(event.data)} bytes; the log takes up to {MAX_EVENT_BYTES}")
        frame = encode(topic, event)
        try:
            self._rotate_when_full()
            writer, end = self._write(frame)
            self._sync(writer, end)
        except OSError as error:
            raise LogError(f"the outbox {self._directory} cannot be written: {error}", retriable=True) from error

    def _write(self, frame: bytes) -> tuple[SegmentWriter, int]:
        with self._state:
            if self._closed or self._writer is None:
                raise LogError("the spool is closed")
            if self._pending + len(frame) > self._max_bytes:
                raise SpoolFull(
                    f"the outbox {self._directory} holds {self._pending} bytes that the log has not taken "
                    f"(bound {self._max_bytes}): is the log reachable?"
                )
            self._writer.write(frame)
            self._pending += len(frame)
            metrics.LOG_SPOOL_BYTES.set(self._pending)
            return self._writer, self._writer.size

    def flush(self, timeout: float) -> bool:
        """Waits until the log has everything put so far; False when it has not within `timeout` seconds."""
        with self._state:
            return self._state.wait_for(lambda: self._pending == 0 or self.failure is not None, timeout) and (
                self._pending == 0
            )

    @property
    def pending_bytes(self) -> int:
        """Bytes that the log has not acknowledged."""
        return self._pending

    def close(self) -> None:
        """Stops draining; what is left stays on disk for the next process. Idempotent."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._state.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        with self._sync_lock:
            if self._writer is not None:
                with contextlib.suppress(OSError):
                    self._writer.sync()  # for a put that is between its write and its sync
                self._writer.close()
                self._writer = None
        os.close(self._lock_file)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- writing

    def _acquire(self) -> int:
        descriptor = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise LogError(f"the outbox {self._directory} is in use by another process; give each its own") from error
        return descriptor

    def _rotate_when_full(self) -> None:
        if self._has_room(self._writer):
            return  # without the locks, so that threads write beside a running sync and share the next one
        with self._sync_lock, self._state:
            old = self._writer
            if self._closed or self._has_room(old):
                return
            if old is not None:
                with contextlib.suppress(OSError):  # those whose frames are not on the disk learn it in _sync
                    old.sync()
                old.close()
            self._writer = SegmentWriter(self._directory / f"{self._next_number:012d}{SUFFIX}")
            self._next_number += 1

    @staticmethod
    def _has_room(writer: SegmentWriter | None) -> bool:
        return writer is not None and writer.size < _SEGMENT_BYTES and not writer.broken

    def _sync(self, writer: SegmentWriter, end: int) -> None:
        """Whoever comes first syncs for all whose frames are written by then."""
        with self._sync_lock:
            if writer.synced < end:
                if writer is not self._writer or writer.broken:
                    raise LogError(f"the outbox {self._directory} could not be synced", retriable=True)
                writer.sync()
        with self._state:
            self._state.notify_all()

    # --- draining

    def _run(self) -> None:
        log: EventLog | None = None
        wait, longest = _BACKOFF_SECONDS
        try:
            while not self._closed:
                try:
                    if log is None:
                        log = self._log_factory()
                    if self._drain(log):
                        wait = _BACKOFF_SECONDS[0]
                        continue
                except LogError as error:
                    logger.warning("the log takes no events, %d bytes wait in the outbox: %s", self._pending, error)
                    with self._state:
                        self._state.wait_for(lambda: self._closed, wait)
                    wait = min(wait * 2, longest)
                    continue
                with self._state:
                    self._state.wait_for(lambda: self._closed or self._has_synced(), 1.0)
        except BaseException as error:
            logger.exception("the outbox stopped draining")
            with self._state:
                self.failure = error
                self._state.notify_all()
        finally:
            if log is not None:
                log.close()

    def _has_synced(self) -> bool:
        return self._writer is not None and self._writer.synced > self._cursor

    def _drain(self, log: EventLog) -> bool:
        """Sends one batch from the oldest segment. False when there is nothing to send."""
        segments = self._segments()
        if not segments:
            return False
        path = segments[0]
        with self._state:
            active = self._writer is not None and self._writer.path == path
            end = self._writer.synced if self._writer is not None and active else None
        try:
            batch = list(islice(frames(path, self._cursor, end), _BATCH))
        except SegmentCorrupted as error:
            self._set_aside(path, error)
            return True
        if not batch:
            if active:
                return False
            self._finish(path)
            return True
        for topic, group in groupby(batch, key=lambda frame: frame[1]):
            self._send(log, topic, [event for _, _, event in group])
        self._advance(path, batch[-1][0])
        return True

    def _send(self, log: EventLog, topic: str, events: list[Event]) -> None:
        try:
            log.append_many(topic, events)
        except EventTooLarge as error:
            if len(events) > 1:
                for event in events:  # one of them is the culprit
                    self._send(log, topic, [event])
            else:
                self._reject(topic, events[0], error)

    def _reject(self, topic: str, event: Event, error: LogError) -> None:
        logger.error("the log refuses event %s for %s: %s", event.id, topic, error)
        folder = self._directory / "rejected"
        folder.mkdir(exist_ok=True)
        path = folder / f"{time.time_ns()}{SUFFIX}"
        writer = SegmentWriter(path)
        try:
            writer.write(encode(topic, event))
            writer.sync()
        finally:
            writer.close()
        path.with_suffix(".reason").write_text(f"{error}\n", encoding="utf-8")

    def _advance(self, path: Path, cursor: int) -> None:
        # Not synced: an older cursor after a power failure only repeats events.
        temporary = self._directory / "cursor.tmp"
        temporary.write_text(json.dumps([path.name, cursor]), encoding="utf-8")
        temporary.replace(self._directory / "cursor")
        with self._state:
            self._pending -= cursor - self._cursor
            self._cursor = cursor
            metrics.LOG_SPOOL_BYTES.set(self._pending)
            self._state.notify_all()

    def _finish(self, path: Path) -> None:
        """A segment that is sent; a frame cut short at its end was never acknowledged and goes with it."""
        rest = path.stat().st_size - self._cursor
        if rest:
            logger.warning("%s ends in %d bytes of an event that was never accepted", path.name, rest)
        path.unlink()
        self._next_segment()

    def _set_aside(self, path: Path, error: SegmentCorrupted) -> None:
        logger.error("outbox segment set aside as %s.corrupted, for a person to look at: %s", path.name, error)
        path.rename(path.with_name(f"{path.name}.corrupted"))
        self._next_segment()

    def _next_segment(self) -> None:
        sync_directory(self._directory)
        with self._state:
            # Counted anew: what is gone may have held bytes that no put accounts for, of an event cut short.
            writer = self._writer
            self._pending = sum(
                writer.size if writer is not None and writer.path == path else path.stat().st_size
                for path in self._segments()
            )
            self._cursor = 0
            metrics.LOG_SPOOL_BYTES.set(self._pending)
            self._state.notify_all()

    def _segments(self) -> list[Path]:
        return sorted(self._directory.glob(f"[0-9]*{SUFFIX}"))

    def _load_cursor(self) -> tuple[str, int]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            name, cursor = json.loads((self._directory / "cursor").read_text(encoding="utf-8"))
            return str(name), int(cursor)
        return "", 0
