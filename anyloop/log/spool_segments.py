"""Files of the local outbox: frames of one event each, appended and synced, read back whatever cut them short."""

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from anyloop.log.errors import LogError, PoisonEvent
from anyloop.log.events import Event
from anyloop.log.interface import MAX_EVENT_BYTES

SUFFIX = ".segment"
_FRAME = struct.Struct("<II")  # bytes that follow, their CRC-32
_HEADER = struct.Struct("<I")  # bytes of the JSON header; the rest is the event's data
_MAX_BODY = MAX_EVENT_BYTES + 2**20  # an event, and far more header than any has


class SegmentCorrupted(LogError):
    """Bytes that were acknowledged have changed on disk."""


def encode(topic: str, event: Event) -> bytes:
    header = json.dumps({"topic": topic, "key": event.key, "attributes": event.attributes()}).encode()
    body = _HEADER.pack(len(header)) + header + event.data
    return _FRAME.pack(len(body), zlib.crc32(body)) + body


def frames(path: Path, offset: int, end: int | None = None) -> Iterator[tuple[int, str, Event]]:
    """Yields (offset behind the frame, topic, event) from `offset` up to `end` or the end of the file.

    A last frame that is cut short ends the iteration: its writer died before it could acknowledge it. Raises
    SegmentCorrupted where a whole frame does not have its checksum.
    """
    with path.open("rb") as file:
        file.seek(offset)
        while end is None or offset < end:
            head = file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                return
            length, checksum = _FRAME.unpack(head)
            if not _HEADER.size < length <= _MAX_BODY:  # zeros, where the power failed before the bytes were written
                raise SegmentCorrupted(f"{path.name}: no frame begins at byte {offset}")
            body = file.read(length)
            if len(body) < length:
                return
            if zlib.crc32(body) != checksum:
                raise SegmentCorrupted(f"{path.name}: the frame at byte {offset} does not have its checksum")
            offset += _FRAME.size + length
            yield (offset, *_decode(path, body))


def _decode(path: Path, body: bytes) -> tuple[str, Event]:
    try:
        (length,) = _HEADER.unpack_from(body)
        header = json.loads(body[_HEADER.size : _HEADER.size + length])
        data = body[_HEADER.size + length :]
        return header["topic"], Event.from_attributes(header["attributes"], key=header["key"], data=data)
    except (struct.error, ValueError, KeyError, TypeError, PoisonEvent) as error:
        raise SegmentCorrupted(f"{path.name} holds a frame that is no event: {error}") from error


class SegmentWriter:
    """Appends whole frames to a new file. `write`, `cut` and `close` belong under one lock, `sync` may run beside
    `write`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.synced = 0  # bytes known to be on the disk
        self.broken = False  # what stands behind `size` is unknown: nothing more may be appended
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        try:
            sync_directory(path.parent)
        except OSError:  # nothing may stay behind that the next attempt, or the reader, would stumble over
            os.close(self._descriptor)
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def write(self, frame: bytes) -> None:
        """Raises OSError; what was written of the frame is then cut off again, so that the next one may follow."""
        try:
            written = 0
            while written < len(frame):
                written += os.write(self._descriptor, memoryview(frame)[written:])
        except OSError:
            self.cut(self.size)
            raise
        self.size += len(frame)

    def cut(self, size: int) -> None:
        """Takes back what stands behind `size`; where even that fails, the reader stops at the frame cut short."""
        try:
            os.ftruncate(self._descriptor, size)
            self.size = size
        except OSError:
            self.broken = True

    def sync(self) -> None:
        size = self.size
        try:
            os.fsync(self._descriptor)
        except OSError:
            self.broken = True
            raise
        self.synced = max(self.synced, size)

    def close(self) -> None:
        os.close(self._descriptor)


def sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
