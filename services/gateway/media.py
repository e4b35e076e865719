"""Media on their way in: recognised by their bytes, decoded once within limits, then stored under their SHA-256."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

from anyloop.config import Settings
from anyloop.media.formats import read_audio, read_image, read_video, sniff
from anyloop.media.limits import MediaError, MediaLimits
from anyloop.media.store import MediaNotFound, MediaStore, MediaStoreError, StoredMedia, modality_of, to_proto
from anyloop.modality import Modality
from protos.anyloop.v1 import types_pb2
from services.gateway.errors import GatewayError, Status, invalid, not_found, too_large, unavailable
from services.gateway.links import FROM_PROTO

log = logging.getLogger(__name__)

PIECE_BYTES = 2**20  # larger files are sent in pieces
_AT_ONCE = 2  # decoders running at the same time: each may hold a whole decoded medium


class MediaDesk:
    """Everything that becomes a MediaRef passes here."""

    def __init__(self, store: MediaStore, settings: Settings) -> None:
        self.store = store
        self._limits = MediaLimits(
            max_image_bytes=settings.max_image_bytes,
            max_audio_bytes=settings.max_audio_bytes,
            max_video_bytes=settings.max_video_bytes,
        )
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def ingest(self, data: bytes, expected: Modality | None = None, param: str | None = None) -> StoredMedia:
        """Stores the file.

        Raises GatewayError: 400 broken or of another modality, 413 too large, 415 unknown, 503 without the store.
        """
        async with self._turns:
            with _away():
                return await asyncio.to_thread(self._ingest, data, expected, param)

    async def describe(self, sha256: str, param: str | None = None) -> StoredMedia:
        """Raises GatewayError (404, or 503 without the store)."""
        try:
            with _away():
                return await asyncio.to_thread(self.store.describe, sha256)
        except MediaNotFound as error:
            raise not_found(
                f"no stored file has the SHA-256 {sha256[:80]!r}; upload it with POST /v1/media",
                "media_not_found",
                param,
            ) from error

    async def read(self, sha256: str) -> bytes:
        """Raises GatewayError (404, or 503 without the store)."""
        try:
            with _away():
                return await asyncio.to_thread(self.store.get, sha256)
        except MediaNotFound as error:
            raise not_found(f"no stored file has the SHA-256 {sha256[:80]!r}", "media_not_found") from error

    async def pieces(self, sha256: str, begin: int, end: int) -> AsyncIterator[bytes]:
        """Bytes `[begin, end)` of a stored file, one piece after the other: a slow reader holds no more than one."""
        for at in range(begin, end, PIECE_BYTES):
            yield await asyncio.to_thread(self.store.piece, sha256, at, min(at + PIECE_BYTES, end))

    async def resolve(self, parts: list[types_pb2.ContentPart], path: str) -> list[types_pb2.ContentPart]:
        """The parts with every medium stored and named by a checked reference. `path` names them in errors."""
        return [await self._resolve(part, f"{path}[{index}]") for index, part in enumerate(parts)]

    async def _resolve(self, part: types_pb2.ContentPart, param: str) -> types_pb2.ContentPart:
        kind = part.WhichOneof("part")
        if kind is None:
            raise invalid("an empty content part: set its text, media or inline_media", param)
        if kind == "text":
            return part
        if kind == "inline_media":
            family = part.inline_media.mime_type.partition("/")[0]
            expected = Modality(family) if family in {str(m) for m in Modality} else None
            stored = await self.ingest(part.inline_media.data, expected, param)
        else:
            stored = await self.describe(part.media.sha256, param)
            _check_modality(stored, FROM_PROTO.get(part.media.modality), param)
        return types_pb2.ContentPart(media=to_proto(stored))

    def _ingest(self, data: bytes, expected: Modality | None, param: str | None) -> StoredMedia:
        try:
            mime_type = sniff(data)
        except MediaError as error:
            http = 415 if param is None else None  # the whole body, or one part of it
            raise GatewayError(Status.INVALID_ARGUMENT, str(error), "unsupported_media", param, http) from error
        modality = modality_of(mime_type)
        if expected is not None and modality is not expected:
            raise invalid(
                f"the file is {mime_type}, not {expected}; send it as the modality it is", param, "wrong_modality"
            )
        if len(data) > self._limits.max_bytes(modality):
            raise too_large(
                f"the {modality} has {len(data)} bytes, over {self._limits.max_bytes(modality)}; send a smaller one"
            )
        try:
            self._decode(data, modality)
        except MediaError as error:
            raise invalid(str(error), param, "invalid_media") from error
        return self.store.put(data, mime_type)

    def _decode(self, data: bytes, modality: Modality) -> None:
        if modality is Modality.IMAGE:
            read_image(data, self._limits)
        elif modality is Modality.AUDIO:
            read_audio(data, self._limits)
        else:
            read_video(data, self._limits, frames=1)


def _check_modality(stored: StoredMedia, expected: Modality | None, param: str) -> None:
    if expected is not None and stored.modality is not expected:
        raise invalid(
            f"the stored file is {stored.mime_type}, not {expected}; use the part type of its modality", param
        )


@contextlib.contextmanager
def _away() -> Iterator[None]:
    try:
        yield
    except MediaStoreError as error:
        log.error("the object store fails: %s", error)  # addresses and buckets are no client's business
        raise unavailable("media cannot be stored or read at the moment; try again shortly", 5.0) from error
