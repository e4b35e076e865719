"""The folder of an outbox: segments that are written at one end and taken away at the other, within a bound."""

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

from anyloop.log.errors import LogError, SpoolFull
from anyloop.log.events import Event
from anyloop.log.spool_segments import SUFFIX, SegmentCorrupted, SegmentWriter, frames, sync_directory
from anyloop.log.spool_state import StateFile
from anyloop.telemetry import metrics

logger = logging.getLogger(__name__)

_SEGMENT_BYTES = 8 * 2**20
_BATCH_EVENTS, _BATCH_BYTES = 500, 2 * 2**20

Frame = tuple[int, str, Event]  # offset behind it, topic, event


class SpoolFolder:
    """Any thread may write and sync, one thread reads (`batch`, `advance`). `changed` is notified of all that happens.

    With `durable`, only what is synced is read: what a caller was refused is then never sent.
    """

    def __init__(self, path: Path, max_bytes: int, *, durable: bool) -> None:
        self.path, self.max_bytes, self._durable = Path(path), max_bytes, durable
        self.changed = threading.Condition()  # guards what follows
        self.pending = 0  # bytes
        self.oldest = time.time()  # Unix seconds of the oldest event, when there is one
        self.closed = False
        self._writer: SegmentWriter | None = None
        self._sync_lock = threading.Lock()  # taken before `changed`, never inside it
        self._unsaved = False
        self._ends: dict[Path, int] = {}  # of segments that hold more than was accepted: where that begins
        self._cramped = False  # the disk has refused something: what is sent is given back at once
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock_file = self._acquire()
        self._file = StateFile(self.path / "state")
        self.state = self._file.load()
        self._segments = deque(sorted(self.path.glob(f"[0-9]*{SUFFIX}")))
        # The state's own number counts although its segment is gone: a new segment of that name would be read from
        # the old cursor, and what stands before it would be lost.
        named = Path(self.state.name).stem
        taken = [int(path.stem) for path in self._segments] + ([int(named)] if named.isdigit() else [])
        self._next_number = max(taken, default=-1) + 1
        if not self._segments or self._segments[0].name != self.state.name:
            self.state.cursor = 0
        self._count()

    # --- writing

    def write(self, frame: bytes) -> tuple[SegmentWriter, int]:
        """The segment that holds the frame, and where it ends there. Raises SpoolFull, LogError, OSError."""
        try:
            while (written := self._write(frame)) is None:
                self._rotate_when_full()
        except OSError:
            with self.changed:
                self._cramped = True
                self.changed.notify_all()
            raise
        return written

    def _write(self, frame: bytes) -> tuple[SegmentWriter, int] | None:
        """None when there is no segment with room."""
        with self.changed:
            if self.closed:
                raise LogError("the spool is closed")
            if self.pending + len(frame) > self.max_bytes:
                raise SpoolFull(
                    f"the outbox {self.path} holds {self.pending} bytes that the log has not taken "
                    f"(bound {self.max_bytes}): is the log reachable?"
                )
            writer = self._writer
            if writer is None or not self._has_room(writer):
                return None
            writer.write(frame)
            if self.pending == 0:
                self.oldest = time.time()
            self._add(len(frame))
            if not self._durable:
                self.changed.notify_all()
            return writer, writer.size

    def sync(self, writer: SegmentWriter, end: int) -> None:
        """Whoever comes first syncs for all whose frames are written by then. Raises LogError, OSError."""
        with self._sync_lock:
            if writer.synced < end:
                if writer is not self._writer or writer.broken:
                    raise LogError(f"the outbox {self.path} could not be synced", retriable=True)
                self._sync(writer)
        with self.changed:
            self.changed.notify_all()

    def sync_written(self) -> None:
        """Syncs what was written so far. Raises OSError."""
        with self._sync_lock:
            if self._writer is not None and self._writer.synced < self._writer.size and not self._writer.broken:
                self._sync(self._writer)

    def _sync(self, writer: SegmentWriter) -> None:
        try:
            writer.sync()
        except OSError:
            if self._durable:  # all that is not synced is refused to those who wait here, so nobody may send it
                with self.changed:
                    begun = writer.size
                    writer.cut(writer.synced)
                    self._add(writer.size - begun)
            raise

    def _rotate_when_full(self) -> None:
        with self._sync_lock, self.changed:
            old = self._writer
            if self.closed or (old is not None and self._has_room(old)):
                return
            number = self._next_number
            self._next_number += 1  # first: where a file of this number stays behind, another one is tried
            writer = SegmentWriter(self.path / f"{number:012d}{SUFFIX}")
            if old is not None:
                self._sync_last(old)
                old.close()
            self._writer = writer
            self._segments.append(writer.path)

    def _sync_last(self, writer: SegmentWriter) -> None:
        """Before it is closed. Those whose frames are not on the disk then learn it in `sync`."""
        if not (self._durable and writer.broken):  # else those who wait were refused, and a later sync changes nothing
            with contextlib.suppress(OSError):
                self._sync(writer)
        if self._durable and writer.synced < writer.size:  # it could not even be cut
            self._ends[writer.path] = writer.synced

    @staticmethod
    def _has_room(writer: SegmentWriter) -> bool:
        return writer.size < _SEGMENT_BYTES and not writer.broken

    def _add(self, size: int) -> None:
        self.pending += size
        metrics.LOG_SPOOL_BYTES.set(self.pending)

    # --- reading

    def has_more(self) -> bool:
        """Under `changed`: there is something to read."""
        if len(self._segments) != 1 or self._writer is None or self._segments[0] != self._writer.path:
            return bool(self._segments)
        return self._readable(self._writer) > self.state.cursor or self._may_retire(self._writer)

    def batch(self) -> list[Frame]:
        """The oldest frames that the log does not have, all of one topic, so that they are sent or not as one; segments
        that hold no more are taken away. Raises OSError."""
        while self._segments:
            path = self._segments[0]
            with self.changed:
                writer = self._writer if self._writer is not None and self._writer.path == path else None
                end = self._ends.get(path) if writer is None else self._readable(writer)
            batch: list[Frame] = []
            begin = self.state.cursor
            try:
                for frame in frames(path, begin, end):
                    if batch and frame[1] != batch[0][1]:
                        break
                    batch.append(frame)
                    if len(batch) == _BATCH_EVENTS or frame[0] - begin >= _BATCH_BYTES:
                        break
            except SegmentCorrupted as error:
                if not batch:  # else what precedes it is sent first
                    self._set_aside(path, error)
                    continue
            if batch:
                self.oldest = batch[0][2].time.timestamp()
            if batch:
                return batch
            if writer is not None and not self._retire(writer):
                return []
            self._finish(path)
        return []

    def latest(self) -> list[Event]:
        """What the newest segment of an earlier process holds that is not in the log yet. Raises OSError."""
        if not self._segments:
            return []
        path, found = self._segments[-1], []
        with contextlib.suppress(SegmentCorrupted):
            for _, _, event in frames(path, self.state.cursor if len(self._segments) == 1 else 0):
                found.append(event)
        return found

    def advance(self, cursor: int) -> None:
        """The log has what stands before `cursor` in the oldest segment."""
        with self.changed:
            self._add(self.state.cursor - cursor)
            self.state.name, self.state.cursor = self._segments[0].name, cursor
            self.changed.notify_all()
        self.save_state()

    def save_state(self) -> None:
        """A disk that refuses is no reason to stop: draining is what makes room again."""
        try:
            self._file.save(self.state)
            self._unsaved = False
        except OSError as error:
            if not self._unsaved:
                logger.warning("how far the outbox %s is drained cannot be noted: %s", self.path, error)
            self._unsaved = True

    def _may_retire(self, writer: SegmentWriter) -> bool:
        if self._durable and writer.broken:
            return writer.synced == self.state.cursor
        return self._cramped and 0 < writer.size == self.state.cursor

    def _retire(self, writer: SegmentWriter) -> bool:
        """On a full disk the segment that is written is given back too, once all of it is sent; a broken one anyway."""
        with self._sync_lock, self.changed:
            if not self._may_retire(writer):
                return False
            self._cramped = False
            writer.close()
            self._writer = None
            return True

    def _readable(self, writer: SegmentWriter) -> int:
        return writer.synced if self._durable else writer.size

    def _finish(self, path: Path) -> None:
        """A segment that is sent; a frame cut short at its end was never acknowledged and goes with it."""
        rest = path.stat().st_size - self.state.cursor
        if rest:
            logger.warning("%s ends in %d bytes of an event that was never accepted", path.name, rest)
        path.unlink()
        self._next_segment()

    def _set_aside(self, path: Path, error: SegmentCorrupted) -> None:
        logger.error("outbox segment set aside as %s.corrupted, for a person to look at: %s", path.name, error)
        path.rename(path.with_name(f"{path.name}.corrupted"))
        self._next_segment()

    def _next_segment(self) -> None:
        sync_directory(self.path)
        with self.changed:
            if self._writer is not None and self._writer.path == self._segments[0]:
                self._writer.broken = True  # set aside while it was written
            self._ends.pop(self._segments.popleft(), None)
            self.state.cursor = 0
            self._count()
            self.changed.notify_all()

    def _count(self) -> None:
        # Counted anew: what is gone may have held bytes that no put accounts for, of an event cut short.
        writer = self._writer
        sizes = (writer.size if writer and writer.path == path else path.stat().st_size for path in self._segments)
        self.pending = sum(sizes) - self.state.cursor
        metrics.LOG_SPOOL_BYTES.set(self.pending)

    # --- the folder

    def _acquire(self) -> int:
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise LogError(f"the outbox {self.path} is in use by another process; give each its own") from error
        return descriptor

    def close(self) -> None:
        """What is left stays on disk. The reader has ended before."""
        with self._sync_lock, self.changed:
            if self._writer is not None:
                if self._durable and self._writer.broken:
                    self._writer.cut(self._writer.synced)  # the next process does not know what was refused
                self._sync_last(self._writer)  # for those between their write and their sync
                self._writer.close()
                self._writer = None
        self._file.close()
        os.close(self._lock_file)
