"""The version that a home served last: what its replica begins with while the log, which knows better, is away."""

import logging
from pathlib import Path

logger = logging.getLogger(__name__)


class LastServing:
    """A hint, no truth: read only when the log does not answer, and verified like any version before it serves."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._noted: str | None = None

    def read(self) -> str | None:
        try:
            return self._path.read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def note(self, version: str) -> None:
        """Costs nothing when it is the same as before."""
        if version == self._noted:
            return
        self._noted = version
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(version + "\n", encoding="utf-8")
            temporary.replace(self._path)
        except OSError as error:
            logger.warning("the serving version cannot be noted: %s", error)
