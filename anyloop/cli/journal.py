"""The trainer's journal (`home/trainer/rounds.jsonl`), as a reader in another process sees it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Journal:
    """Reads the file anew at each call; there need not be one yet. A line still being written is left out."""

    path: Path

    def rounds(self) -> list[dict[str, Any]]:
        """The records of finished rounds, oldest first."""
        return [record for record in self._records() if record.get("event") == "round"]

    def newest_phase(self) -> str:
        """The phase of a round that ended last; empty when none has."""
        phases = [record["phase"] for record in self._records() if record.get("event") == "phase"]
        return str(phases[-1]) if phases else ""

    def under_way(self) -> tuple[int, list[str]] | None:
        """The round that has not ended yet, with the phases of it that have; None between rounds."""
        phases: list[dict[str, Any]] = []
        for record in self._records():
            if record.get("event") == "phase":
                phases = [*phases, record] if phases and phases[-1]["round"] == record["round"] else [record]
            elif record.get("event") in ("round", "failure"):
                phases = []
        return (int(phases[0]["round"]), [str(record["phase"]) for record in phases]) if phases else None

    def failures(self) -> list[str]:
        """Why rounds failed, oldest first; the trainer tries a failed round again."""
        return [str(record.get("reason")) for record in self._records() if record.get("event") == "failure"]

    def trouble(self) -> str:
        """Why the round that is being tried has failed; empty when none has since the last one that ended."""
        why = ""
        for record in self._records():
            if record.get("event") == "failure":
                why = str(record.get("reason"))
            elif record.get("event") == "round":
                why = ""
        return why

    def _records(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_text().split("\n")[:-1]
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines if line]
