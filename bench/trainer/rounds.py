"""From the last feedback of a round to the new weights in service, by phase, as a trainer's journal tells it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

JOURNAL = "rounds.jsonl"


@dataclass(frozen=True)
class RoundTimes:
    """Seconds. `waited` is from the last feedback to the begin of the round, None where the journal does not say.

    `total` is from the last feedback (or the begin) to the round's end, which is when the weights are in service.
    """

    number: int
    outcome: str
    feedback: int
    waited: float | None
    phases: dict[str, float]
    total: float

    @property
    def between(self) -> float:
        """What no phase accounts for: loading models, publishing, announcements."""
        return self.total - (self.waited or 0.0) - sum(self.phases.values())


def read_rounds(path: Path) -> list[RoundTimes]:
    """The rounds of a journal, or of the only one below a folder. Raises ValueError with what to do."""
    if path.is_dir():
        found = sorted(path.rglob(JOURNAL))
        if len(found) != 1:
            names = ", ".join(map(str, found)) or "none"
            raise ValueError(f"expected one {JOURNAL} below {path}, found {names}: name the file")
        path = found[0]
    if not path.exists():
        raise ValueError(f"{path} does not exist: run `anyloop demo` first, and name its {JOURNAL} or folder")
    rounds = []
    for line in path.read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "round":
            rounds.append(_times(event))
    if not rounds:
        raise ValueError(f"{path} holds no finished round yet")
    return rounds


def _times(event: dict[str, object]) -> RoundTimes:
    metrics, seconds = event["metrics"], event["seconds"]
    assert isinstance(metrics, dict)
    assert isinstance(seconds, dict)
    started, ended = float(str(event["started"])), float(str(event["time"]))
    last = metrics.get("last_feedback")
    begun = started if last is None else float(last)
    return RoundTimes(
        int(str(event["round"])),
        str(event["outcome"]),
        int(metrics.get("feedback", 0)),
        None if last is None else started - begun,
        {str(name): float(value) for name, value in seconds.items()},
        ended - begun,
    )


def show_rounds(rounds: list[RoundTimes], console: Console) -> None:
    names = list(dict.fromkeys(name for one in rounds for name in one.phases))
    table = Table(title="From the last feedback to the new weights in service, seconds", title_justify="left")
    table.add_column("phase")
    for one in rounds:
        table.add_column(f"round {one.number}", justify="right")
    table.add_row("outcome", *(one.outcome for one in rounds))
    table.add_row("feedback events", *(str(one.feedback) for one in rounds), end_section=True)
    table.add_row("wait for quiet", *("-" if one.waited is None else f"{one.waited:.1f}" for one in rounds))
    for name in names:
        table.add_row(
            name.replace("_", " "), *(f"{one.phases[name]:.1f}" if name in one.phases else "-" for one in rounds)
        )
    table.add_row("between phases", *(f"{one.between:.1f}" for one in rounds), end_section=True)
    table.add_row("total", *(f"{one.total:.1f}" for one in rounds))
    console.print(table)
