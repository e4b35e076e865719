"""The announcements kept in memory, for who asks often: each look reads only what was added since the last."""

from collections.abc import Collection, Iterable

from anyloop.log import CHECKPOINTS, EventLog
from anyloop.registry.announce import APPROVED, CANDIDATE, PROMOTED, REJECTED, checkpoint_events
from protos.anyloop.v1 import events_pb2


class Announcements:
    """Every answer is as fresh as the log: it may raise LogError. Belongs to one thread. Opening it reads nothing."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next = 0
        self._events: list[events_pb2.CheckpointEvent] = []

    def read_on(self, log: EventLog) -> None:
        """From the same log, opened anew."""
        self._log = log

    def of(self, lineage: str) -> list[events_pb2.CheckpointEvent]:
        """All announcements of a lineage, in order."""
        self._refresh()
        return [event for event in self._events if event.lineage == lineage]

    def promotions(self, lineage: str) -> list[str]:
        """Versions in the order they went into service, the serving one last."""
        return [event.version for event in self.of(lineage) if event.state == PROMOTED]

    def serving(self, lineage: str) -> str | None:
        """The newest promoted version, or None before the first promotion."""
        promoted = self.promotions(lineage)
        return promoted[-1] if promoted else None

    def announced(self, lineage: str, version: str) -> bool:
        return any(event.version == version for event in self.of(lineage))

    def decision(self, lineage: str, version: str) -> events_pb2.CheckpointEvent | None:
        """The first promotion or rejection of a version: the end of its way."""
        return self._first(lineage, version, (PROMOTED, REJECTED))

    def verdict(self, lineage: str, version: str) -> events_pb2.CheckpointEvent | None:
        """The first decision, or the gate's approval where a rollout decides: a candidate that has one is judged."""
        return self._first(lineage, version, (PROMOTED, REJECTED, APPROVED))

    def undecided(self, lineage: str) -> list[events_pb2.CheckpointEvent]:
        """Candidates without a verdict, in order, each once.

        A candidate announced again after its decision stays decided: who was killed while announcing may do so twice.
        """
        events = self.of(lineage)
        decided = {event.version for event in events if event.state in (PROMOTED, REJECTED, APPROVED)}
        waiting = {event.version: event for event in events if event.state == CANDIDATE}
        return [event for version, event in waiting.items() if version not in decided]

    def approved(self, lineage: str) -> str | None:
        """The version that waits for its rollout, or is in it; None where there is none."""
        return in_rollout(self.of(lineage))

    def _first(self, lineage: str, version: str, states: Collection[int]) -> events_pb2.CheckpointEvent | None:
        return next((one for one in self.of(lineage) if one.version == version and one.state in states), None)

    def _refresh(self) -> None:
        end = self._log.end_offsets(CHECKPOINTS)[0]
        if end < self._next:  # the topic was made anew
            self._next, self._events = 0, []
        if end > self._next:
            found = [(at, event) for at, event in checkpoint_events(self._log, offset=self._next) if at < end]
            self._events += [event for _, event in found]
            self._next = end


def in_rollout(events: Iterable[events_pb2.CheckpointEvent]) -> str | None:
    """Of a lineage's announcements in order, the version that waits for its rollout, or is in it.

    That is the newest approval, until it is promoted or rejected, or something else is promoted after it. Older
    approvals are overtaken. Nobody but a rollout rejects an approved version: a rejection that met its promotion
    half-way would take away what serves.
    """
    version = None
    for event in events:
        if event.state == APPROVED:
            version = event.version
        elif event.state == PROMOTED or (event.state == REJECTED and event.version == version):
            version = None
    return version
