"""What stays of a deleted version: its name, never to be used twice, and for a while the feedback it learned from."""

import json
import os
import uuid
from pathlib import Path

from anyloop.registry.files import sync
from anyloop.registry.manifest import Manifest

FOLDER = ".retired"
_KEPT = ("lineage", "parent", "base", "created_unix_ms", "weights_digest")


class Retired:
    """One file per deleted version. An empty one says only that the name was used."""

    def __init__(self, root: Path) -> None:
        self._folder = root / FOLDER
        self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def lock_file(self) -> Path:
        return self._folder / ".lock"

    def names(self) -> list[str]:
        return [entry.name for entry in self._folder.iterdir() if not entry.name.startswith(".")]

    def __contains__(self, version: str) -> bool:
        return (self._folder / version).exists()

    def add(self, version: str, manifest: Manifest | None) -> None:
        """Durable when it returns. `manifest` is None where it cannot be read."""
        facts = {}
        if manifest is not None:
            ids = manifest.metrics.get("feedback_ids", [])
            facts = {name: getattr(manifest, name) for name in _KEPT} | {"feedback_ids": ids}
        temporary = self._folder / f".{uuid.uuid4().hex}"
        try:
            temporary.write_text(json.dumps(facts) if facts else "", encoding="utf-8")
            sync(temporary)
            temporary.replace(self._folder / version)
        finally:
            temporary.unlink(missing_ok=True)
        sync(self._folder)

    def feedback(self, version: str) -> tuple[str, frozenset[str]]:
        """(lineage, ids of the feedback that the version learned from); ("", none) once that is forgotten."""
        try:
            facts = json.loads((self._folder / version).read_text(encoding="utf-8") or "{}")
        except FileNotFoundError:
            facts = {}
        return facts.get("lineage", ""), frozenset(facts.get("feedback_ids", ()))

    def forget(self, deleted_before: float) -> list[str]:
        """Keeps only the names of versions deleted before then (Unix seconds). Returns those it emptied."""
        emptied = []
        for version in self.names():
            path = self._folder / version
            state = path.stat()
            if state.st_size and state.st_mtime < deleted_before:
                os.truncate(path, 0)
                emptied.append(version)
        return sorted(emptied)
