"""Where the weights of a lineage stand, from its announcements: what serves since when and by whom, what waits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyloop.log import EventLog
    from anyloop.registry.announcements import Announcements
    from protos.anyloop.v1 import events_pb2


class Remembered:
    """The announcements over many looks at a log that is opened for each of them: every look reads what is new."""

    def __init__(self) -> None:
        self._url = ""
        self._announcements: Announcements | None = None

    def of(self, url: str, log: "EventLog") -> "Announcements":
        from anyloop.registry.announcements import Announcements

        if self._announcements is None or url != self._url:
            self._url, self._announcements = url, Announcements(log)
        else:
            self._announcements.read_on(log)
        return self._announcements


def checkpoint_state(announcements: "Announcements", lineage: str) -> dict[str, Any]:
    """`serving` (the newest promotion), `decision` (the newest promotion, rejection or approval), `candidates` (without
    a verdict, in order) and `rollout` (the approved version that is being rolled out). Raises LogError."""
    return summary(
        announcements.of(lineage),
        [event.version for event in announcements.undecided(lineage)],
        announcements.approved(lineage),
    )


def summary(
    events: "Sequence[events_pb2.CheckpointEvent]", candidates: list[str], approved: str | None
) -> dict[str, Any]:
    from anyloop.registry.announce import APPROVED, PROMOTED, REJECTED

    decided = [event for event in events if event.state in (PROMOTED, REJECTED, APPROVED)]
    promoted = [event for event in decided if event.state == PROMOTED]
    started = next((event for event in reversed(decided) if event.version == approved), None)
    return {
        "serving": _told(promoted[-1]) if promoted else None,
        "decision": _told(decided[-1]) if decided else None,
        "candidates": candidates,
        "rollout": _told(started) if started else None,
    }


def _told(event: "events_pb2.CheckpointEvent") -> dict[str, Any]:
    from anyloop.registry.announce import State

    return {
        "version": event.version,
        "state": State.Name(event.state).removeprefix("STATE_").lower(),
        "by": event.decided_by,
        "reason": event.reason,
        "unix_ms": event.created_unix_ms,
    }
