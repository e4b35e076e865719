"""How the media of an exported set come with it: linked where they lie, copied beside it, or in its rows."""

import base64
from pathlib import Path
from typing import Any, Literal

from anyloop.media.store import MediaNotFound, MediaStore
from protos.anyloop.v1 import types_pb2

Mode = Literal["link", "copy", "inline"]
FOLDER = "media"
_SUFFIXES = {  # of what the store may hold; the standard library knows no audio/wav
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "audio/webm": ".webm",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
}


class MediaPlaces:
    """Call it with a reference. `structs`: inline media as `{bytes, path}`, as `datasets` stores them in Parquet; else
    as `data:` URLs. `missing` holds the SHA-256 of what is not in the store: its row cannot be written."""

    def __init__(self, store: MediaStore, mode: Mode, folder: Path, *, structs: bool) -> None:
        self._store, self._mode, self._folder, self._structs = store, mode, folder, structs
        self.missing: set[str] = set()

    def __call__(self, media: types_pb2.MediaRef) -> Any:
        """Raises MediaNotFound."""
        try:
            return self._place(media)
        except MediaNotFound:
            self.missing.add(media.sha256)
            raise

    def _place(self, media: types_pb2.MediaRef) -> Any:
        if self._mode == "link":
            return self._store.location(media.sha256)
        stored = self._store.describe(media.sha256)
        name = media.sha256 + _SUFFIXES.get(stored.mime_type, "")
        if self._mode == "copy":
            target = self._folder / FOLDER / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self._store.get(media.sha256))
            return f"{FOLDER}/{name}"
        data = self._store.get(media.sha256)
        if self._structs:
            return {"bytes": data, "path": name}
        return f"data:{stored.mime_type};base64,{base64.b64encode(data).decode()}"
