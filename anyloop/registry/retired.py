"""What stays of a deleted version: its name, never to be used twice, and for a while the feedback it learned from."""

import json
import os
from pathlib import Path

from anyloop.registry.files import sync

FOLDER = ".retired"


class Retired:
    """One file per deleted version, which was its manifest. An empty one says only that the name was used."""

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

    def take(self, version: str, manifest: Path) -> None:
        """Moves the manifest here, by one rename: it must work on the full disk that deleting is to relieve."""
        manifest.replace(self._folder / version)
        sync(self._folder)

    def feedback(self, version: str) -> tuple[str, frozenset[str]]:
        """(lineage, ids of the feedback that the version learned from); ("", none) where that is not known any more."""
        try:
            facts = json.loads((self._folder / version).read_text(encoding="utf-8") or "{}")
            return str(facts["lineage"]), frozenset(facts["metrics"].get("feedback_ids", ()))
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return "", frozenset()

    def forget(self, published_before: float) -> list[str]:
        """Keeps only the names of versions published before then (Unix seconds). Returns those it emptied."""
        emptied = []
        for version in self.names():
            path = self._folder / version
            state = path.stat()
            if state.st_size and state.st_mtime < published_before:
                os.truncate(path, 0)
                emptied.append(version)
        return sorted(emptied)
