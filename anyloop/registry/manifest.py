"""`manifest.json`: what a checkpoint is, what it consists of, where it came from."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Self, TypedDict

MANIFEST = "manifest.json"


class CheckpointError(Exception):
    """A checkpoint that must not be used, or an operation on one that cannot be done; the message says which file and
    why."""


class FileEntry(TypedDict):
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    version: str
    lineage: str  # "policy" or "critique"
    parent: str  # version that training started from; empty for a base
    created_unix_ms: int
    files: dict[str, FileEntry]
    weights_digest: str  # `anyloop.models.digest.weights_digest` over the fp32 tensors
    offsets: dict[str, dict[str, int]]  # "group/topic" -> partition -> next offset: what the training consumed
    metrics: dict[str, Any]
    gate: dict[str, Any] | None  # the gate's decision, once there is one
    base: str  # the imported version that this line of training descends from

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises CheckpointError on anything but a whole manifest; fields of a later release are ignored."""
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise CheckpointError(f"{MANIFEST} is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise CheckpointError(f"{MANIFEST} is not a JSON object")
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in raw]
        if missing:
            raise CheckpointError(f"{MANIFEST} lacks {', '.join(missing)}")
        manifest = cls(**{name: raw[name] for name in names})
        manifest._check()
        return manifest

    def _check(self) -> None:
        for name in ("version", "lineage", "parent", "weights_digest", "base"):
            if not isinstance(getattr(self, name), str):
                raise CheckpointError(f"{MANIFEST}: {name} is not a string")
        if not isinstance(self.files, dict) or not self.files:
            raise CheckpointError(f"{MANIFEST} lists no files")
        for name, entry in self.files.items():
            # Names become paths: one that leaves the checkpoint's folder is an attack or a broken writer.
            if name.startswith("/") or ".." in name.split("/") or "\\" in name:
                raise CheckpointError(f"{MANIFEST}: file name {name!r} leaves the checkpoint folder")
            if (
                not isinstance(entry, dict)
                or not isinstance(entry.get("sha256"), str)
                or type(entry.get("bytes")) is not int
            ):
                raise CheckpointError(f"{MANIFEST}: {name} lacks sha256 or bytes")
