"""What the event log and the outboxes in front of it hold now, asked quickly and without creating anything."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyloop.cli.looking import missing_log

if TYPE_CHECKING:
    from anyloop.cli.checkpoint_state import Remembered
    from anyloop.log import EventLog

TRAINER_GROUP = "anyloop.trainer"
_PATIENCE_S = 2.0  # with the brokers away; a status must come all the same


@dataclass
class LogState:
    """`error` says why the rest is empty. `lag` is how many events of a topic the trainer has yet to read;
    `dead_letters` are those that nobody has put back yet."""

    url: str
    error: str = ""
    events: dict[str, int] = field(default_factory=dict)
    lag: dict[str, int] = field(default_factory=dict)
    dead_letters: dict[str, int] = field(default_factory=dict)
    checkpoints: dict[str, dict[str, Any]] = field(default_factory=dict)  # by lineage, as `checkpoint_state` tells them


def log_state(url: str, remembered: "Remembered | None" = None) -> LogState:
    """Never raises for a log that is away, refuses, or does not exist. Who looks again and again passes what it
    remembers of the looks before."""
    from anyloop.cli.checkpoint_state import Remembered, checkpoint_state
    from anyloop.cli.replay.letters import GROUP as LETTERS_GROUP
    from anyloop.log import CHECKPOINTS, FEEDBACK, RESPONSES, TOPICS, LogError, UnknownTopic

    state = LogState(url)
    if (path := missing_log(url)) is not None:
        state.error = f"{path} does not exist yet"
        return state
    try:
        with _opened(url) as log:
            for spec in TOPICS:
                try:
                    if spec.name.endswith(".dlq"):
                        state.dead_letters[spec.name] = log.lag(LETTERS_GROUP, [spec.name])
                        continue
                    state.events[spec.name] = sum(log.end_offsets(spec.name).values())
                except UnknownTopic:
                    continue
                if spec.name == CHECKPOINTS and state.events[spec.name]:
                    announcements = (remembered or Remembered()).of(url, log)
                    state.checkpoints = {name: checkpoint_state(announcements, name) for name in ("policy", "critique")}
                if spec.name in (RESPONSES, FEEDBACK):
                    state.lag[spec.name] = log.lag(TRAINER_GROUP, [spec.name])
            if not state.events:
                state.error = "has no topics: run `anyloop topics apply`"
    except (LogError, ValueError) as error:
        state.error = str(error)
    return state


def outboxes(home: Path) -> dict[str, int]:
    """Bytes that wait on this machine's disk for the log, by service."""
    from anyloop.log.spool_segments import SUFFIX
    from anyloop.log.spool_state import StateFile

    waiting = {}
    for folder in sorted((home / "spool").glob("*/")):
        state = StateFile(folder / "state").load()
        sizes = {segment.name: _size(segment) for segment in folder.glob(f"*{SUFFIX}")}
        if state.name in sizes:
            sizes[state.name] = max(0, sizes[state.name] - state.cursor)
        waiting[folder.name] = sum(sizes.values())
    return waiting


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # drained meanwhile
        return 0


def _opened(url: str) -> "EventLog":
    from anyloop.log import open_log

    if not url.startswith("kafka:"):
        return open_log(url)
    from anyloop.log.kafka import KafkaLog
    from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings

    return KafkaLog(KafkaAddress.from_url(url), KafkaSettings(timeout_s=_PATIENCE_S))
