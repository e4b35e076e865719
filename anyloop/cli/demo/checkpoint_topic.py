"""Decisions about checkpoints as they stand in the log."""

from dataclasses import dataclass
from typing import Any

from anyloop.log import CHECKPOINTS, EventLog
from anyloop.registry.announce import APPROVED, CANDIDATE, PROMOTED, REJECTED
from protos.anyloop.v1 import events_pb2

_STATES = {CANDIDATE: "candidate", PROMOTED: "promoted", REJECTED: "rejected", APPROVED: "approved"}


@dataclass(frozen=True)
class Announcement:
    """`at` is when the log took it, Unix seconds."""

    lineage: str
    version: str
    parent: str
    state: str
    reason: str
    decided_by: str
    report_json: str
    at: float


class CheckpointTopic:
    """Remembers how far it has read; `news` gives what has come since. It begins at the end of the topic."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next = log.end_offsets(CHECKPOINTS)[0]

    def news(self) -> list[Announcement]:
        announcements = []
        for record in self._log.read(CHECKPOINTS, partition=0, offset=self._next):
            self._next = record.offset + 1
            message: Any = record.event.unwrap()
            if isinstance(message, events_pb2.CheckpointEvent):
                announcements.append(
                    Announcement(
                        lineage=message.lineage,
                        version=message.version,
                        parent=message.parent,
                        state=_STATES.get(message.state, ""),
                        reason=message.reason,
                        decided_by=message.decided_by,
                        report_json=message.report_json,
                        at=record.time.timestamp(),
                    )
                )
        return announcements
