"""A content-addressed object store over fsspec: every medium is kept once, under the SHA-256 of its bytes.

An object `<sha256>` is two files: the bytes, and `<sha256>.json` with what they are. The second is written last, so its
presence means that the first is whole.
"""

import contextlib
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import fsspec

from anyloop.modality import MEDIA_MODALITIES, Modality
from protos.anyloop.v1 import types_pb2

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MIME_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+-]*")


class MediaNotFound(KeyError):
    """No whole object is stored under this hash."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class MediaCorrupted(MediaNotFound):
    """The stored bytes no longer have the hash they are stored under. Storing the medium again repairs it."""


class MediaStoreError(OSError):
    """The object store did not answer as one that works: away, no such bucket, wrong credentials."""


@dataclass(frozen=True)
class StoredMedia:
    sha256: str
    mime_type: str
    size_bytes: int
    modality: Modality


def modality_of(mime_type: str) -> Modality:
    """`image/png` is an image. Raises ValueError for anything but image, audio and video types."""
    base = mime_type.split(";")[0].strip().lower()
    kind = base.partition("/")[0]
    if not _MIME_TYPE.fullmatch(base) or kind not in MEDIA_MODALITIES:
        raise ValueError(f"media type {mime_type!r} is not an image, audio or video type")
    return Modality(kind)


def to_proto(media: StoredMedia) -> types_pb2.MediaRef:
    return types_pb2.MediaRef(
        sha256=media.sha256,
        mime_type=media.mime_type,
        size_bytes=media.size_bytes,
        modality=types_pb2.Modality.Value(f"MODALITY_{media.modality.name}"),
    )


def from_proto(reference: types_pb2.MediaRef) -> StoredMedia:
    """What a reference claims; only `MediaStore.describe` knows. Raises ValueError on a malformed one."""
    if not _SHA256.fullmatch(reference.sha256):
        raise ValueError(f"media reference {reference.sha256[:80]!r} is not a lower-case hexadecimal SHA-256")
    return StoredMedia(
        sha256=reference.sha256,
        mime_type=reference.mime_type,
        size_bytes=reference.size_bytes,
        modality=modality_of(reference.mime_type),
    )


class MediaStore:
    """`url` is any fsspec URL (`file:///data/media`, `s3://bucket/media`). A local folder is created, a bucket is not.

    An S3 store takes its endpoint, region and keys from the `AWS_*` variables or whatever else botocore reads. Every
    method raises MediaStoreError while an object store is away or refuses.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        # Other processes write too: a listing remembered from before would hide what they have stored since.
        self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        self._root = str(root).rstrip("/")
        self._local = "file" in _protocols(self._fs)
        if self._local:
            Path(self._root).mkdir(parents=True, exist_ok=True)

    def put(self, data: bytes, mime_type: str) -> StoredMedia:
        """Stores the bytes and says what is stored under their hash; of two types for the same bytes the first stays.

        Atomic and idempotent; safe from several processes. Raises ValueError on empty data or an unknown type.
        """
        if not data:
            raise ValueError("an empty file is not a medium")
        mime_type = mime_type.split(";")[0].strip().lower()
        modality = modality_of(mime_type)
        sha256 = hashlib.sha256(data).hexdigest()
        with contextlib.suppress(MediaNotFound):
            stored = self.describe(sha256)
            if self._size(sha256) == len(data):
                return stored
        self._write(self._path(sha256), data)
        description = {"mime_type": mime_type, "size_bytes": len(data)}
        self._write(self._path(sha256) + ".json", json.dumps(description).encode())
        return StoredMedia(sha256, mime_type, len(data), modality)

    def get(self, sha256: str) -> bytes:
        """Raises MediaNotFound, and MediaCorrupted when the bytes do not have this hash."""
        self._check(sha256)
        try:
            data = self._read(self._path(sha256))
        except FileNotFoundError as error:
            raise MediaNotFound(f"no medium {sha256} is stored") from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise MediaCorrupted(f"the stored bytes of {sha256} do not have this hash; upload the medium again")
        return data

    def piece(self, sha256: str, begin: int, end: int) -> bytes:
        """Bytes `[begin, end)` as they are stored: a part cannot be checked against the hash. Raises MediaNotFound."""
        self._check(sha256)
        try:
            return self._read(self._path(sha256), begin, end)
        except FileNotFoundError as error:
            raise MediaNotFound(f"no medium {sha256} is stored") from error

    def location(self, sha256: str) -> str:
        """Where the bytes lie, for programs that read them by themselves: a path of this machine, or an fsspec URL.

        Raises MediaNotFound."""
        self.describe(sha256)
        path = self._path(sha256)
        return path if self._local else str(self._fs.unstrip_protocol(path))

    def describe(self, sha256: str) -> StoredMedia:
        """Raises MediaNotFound."""
        self._check(sha256)
        try:
            description = json.loads(self._read(self._path(sha256) + ".json"))
            mime_type, size = str(description["mime_type"]), int(description["size_bytes"])
            return StoredMedia(sha256, mime_type, size, modality_of(mime_type))
        except FileNotFoundError as error:
            raise MediaNotFound(f"no medium {sha256} is stored") from error
        except (ValueError, KeyError, TypeError) as error:
            raise MediaCorrupted(f"the description of {sha256} is unreadable; upload the medium again") from error

    def exists(self, sha256: str) -> bool:
        try:
            self.describe(sha256)
        except MediaNotFound:
            return False
        return self._size(sha256) is not None

    def _check(self, sha256: str) -> None:
        # Hashes come from clients: anything else must never become a path.
        if not _SHA256.fullmatch(sha256):
            raise MediaNotFound(f"{sha256[:80]!r} is not a lower-case hexadecimal SHA-256")

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256[2:4]}/{sha256}"

    def _size(self, sha256: str) -> int | None:
        with self._troubles(), contextlib.suppress(FileNotFoundError):
            return int(self._fs.size(self._path(sha256)))
        return None

    def _read(self, path: str, begin: int | None = None, end: int | None = None) -> bytes:
        with self._troubles():
            data: bytes = self._fs.cat_file(path, start=begin, end=end)
            return data

    @contextlib.contextmanager
    def _troubles(self) -> Iterator[None]:
        """What goes wrong between this process and an object store, as one kind of error that says what to look at."""
        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            message = f"{self._url} refused: {error}; look at AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and its policies"
            raise error if self._local else MediaStoreError(message) from error
        except Exception as error:  # each kind of store has exceptions of its own
            raise error if self._local else MediaStoreError(f"{self._url} does not answer: {error}") from error

    def _write(self, path: str, data: bytes) -> None:
        if not self._local:
            try:
                with self._troubles():
                    self._fs.pipe_file(path, data)  # object stores publish an object whole or not at all
            except FileNotFoundError as error:
                raise MediaStoreError(f"{self._url} takes nothing: {error}; create the bucket") from error
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(target.parent)


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _sync_directory(directory: Path) -> None:
    """Makes the rename itself survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
