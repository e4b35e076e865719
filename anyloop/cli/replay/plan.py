"""What a replay is: fixed when it is first asked for and kept in its folder, so that it can be taken up again."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from anyloop.cli.exits import CommandError, ExitCode

_NAME = "replay.json"
State = Literal["filling", "ready", "done"]
Offsets = dict[str, dict[str, int]]  # topic -> partition (a string, as in JSON) -> offset


@dataclass
class Plan:
    """`begin` and `end` are the chosen range of the feedback topic; `asked` is what the operator typed."""

    lineage: str
    algorithm: str
    rounds: int
    log: str  # URL of the log it reads
    base: str  # live version that it begins from
    critique: str  # live critique model that it begins from
    gate_suite: str
    begin: Offsets
    end: Offsets
    settings: dict[str, str]  # of the trainer, as given with --set
    asked: dict[str, Any]
    state: State = "filling"
    counts: dict[str, int] = field(default_factory=dict)  # what the selection found

    def save(self, folder: Path) -> None:
        """Atomic: a command killed here leaves the plan before or the plan after."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{_NAME}.tmp"
        with temporary.open("w") as file:
            json.dump(dataclasses.asdict(self), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / _NAME)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """None when the folder holds none. Raises CommandError on a file that is no plan."""
        try:
            return cls(**json.loads((folder / _NAME).read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise CommandError(
                f"{folder / _NAME} is no plan of a replay ({error}): remove {folder} and begin again"
            ) from error

    def refuse_other(self, asked: dict[str, Any], folder: Path) -> None:
        """Raises CommandError when `asked`, as far as it was typed, is not what this replay was begun with."""
        for name, value in asked.items():
            if value and value != self.asked.get(name):
                raise CommandError(
                    f"the replay into {self.lineage} ({folder}) was begun with --{name} "
                    f"{_words(self.asked.get(name))}, not {_words(value)}: leave the option out to go on with it, or "
                    "choose another --into",
                    ExitCode.REFUSED,
                )


def plan_file(folder: Path) -> Path:
    return folder / _NAME


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return str(value) if value else "(none)"
