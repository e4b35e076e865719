"""How far an outbox is drained: a small file written in place, so that a full disk cannot stop it.

Two slots take turns, each with its checksum: a writer killed in the middle leaves the other one. Only a process's first
state is synced: an older one after a power failure means no more than that more events are looked up in the log before
they are sent.
"""

import contextlib
import errno
import json
import os
import struct
import threading
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from anyloop.log.spool_segments import sync_directory

_SLOT_BYTES = 128 * 1024  # offsets of some 8,000 partitions
_HEAD = struct.Struct("<IIQ")  # bytes that follow, their CRC-32, sequence number

Marks = dict[str, dict[int, int]]


@dataclass
class DrainState:
    """`cursor` bytes of the segment `name` are in the log. `marks` has, per topic and partition, an offset in front of
    which nothing stands that may have been sent without an answer; they were true at `time` (Unix seconds)."""

    name: str = ""
    cursor: int = 0
    marks: Marks = field(default_factory=dict)
    time: float = field(default_factory=time.time)


class StateFile:
    """After `close`, which any thread may call, `save` does nothing: the file may be another process's."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # guards what follows
        self._closed = False
        self._descriptor: int | None = None
        self._sequence = 0

    def load(self) -> DrainState:
        """The last state that was written whole; a new one where there is none."""
        found = []
        with contextlib.suppress(OSError):
            data = self._path.read_bytes()
            for begin in (0, _SLOT_BYTES):
                with contextlib.suppress(struct.error, ValueError, KeyError, TypeError, AttributeError):
                    found.append(_decode(data[begin : begin + _SLOT_BYTES]))
        if not found:
            return self._of_the_last_release()
        self._sequence, state = max(found, key=lambda one: one[0])
        return state

    def save(self, state: DrainState) -> None:
        """Raises OSError when the file cannot be created, or holds fewer partitions than there are."""
        body = json.dumps([state.name, state.cursor, state.marks, state.time]).encode()
        if len(body) > _SLOT_BYTES - _HEAD.size:
            raise OSError(errno.EFBIG, f"the state of an outbox has room for {_SLOT_BYTES} bytes, not {len(body)}")
        with self._lock:
            if not self._closed:
                self._write(body)

    def _write(self, body: bytes) -> None:
        first = self._descriptor is None
        if self._descriptor is None:
            self._descriptor = self._create()
        self._sequence += 1
        head = _HEAD.pack(len(body), zlib.crc32(body), self._sequence)
        os.pwrite(self._descriptor, head + body, self._sequence % 2 * _SLOT_BYTES)
        if first:  # so that a power failure leaves a state, however old
            os.fsync(self._descriptor)
            sync_directory(self._path.parent)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _create(self) -> int:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.posix_fallocate(descriptor, 0, 2 * _SLOT_BYTES)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _of_the_last_release(self) -> DrainState:
        """It kept a name and a number in a file `cursor`."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            name, cursor = json.loads(self._path.with_name("cursor").read_text(encoding="utf-8"))
            return DrainState(str(name), int(cursor))
        return DrainState()


def _decode(slot: bytes) -> tuple[int, DrainState]:
    length, checksum, sequence = _HEAD.unpack_from(slot)
    body = slot[_HEAD.size : _HEAD.size + length]
    if not body or zlib.crc32(body) != checksum:
        raise ValueError("a slot that was never written, or not to its end")
    name, cursor, marks, when = json.loads(body)
    by_partition = {topic: {int(part): int(offset) for part, offset in ends.items()} for topic, ends in marks.items()}
    return sequence, DrainState(str(name), int(cursor), by_partition, float(when))
