"""The announcements kept in memory, for who asks often: each look reads only what was added since the last."""

from anyloop.log import CHECKPOINTS, EventLog
from anyloop.registry.announce import CANDIDATE, PROMOTED, REJECTED, checkpoint_events
from protos.anyloop.v1 import events_pb2


class Announcements:
    """Every answer is as fresh as the log: it may raise LogError. Belongs to one thread. Opening it reads nothing."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._next = 0
        self._events: list[events_pb2.CheckpointEvent] = []

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
        """The first promotion or rejection of a version."""
        decided = (PROMOTED, REJECTED)
        return next((one for one in self.of(lineage) if one.version == version and one.state in decided), None)

    def undecided(self, lineage: str) -> list[events_pb2.CheckpointEvent]:
        """Candidates that were neither promoted nor rejected, in order, each once.

        A candidate announced again after its decision stays decided: who was killed while announcing may do so twice.
        """
        events = self.of(lineage)
        decided = {event.version for event in events if event.state in (PROMOTED, REJECTED)}
        waiting = {event.version: event for event in events if event.state == CANDIDATE}
        return [event for version, event in waiting.items() if version not in decided]

    def _refresh(self) -> None:
        end = self._log.end_offsets(CHECKPOINTS)[0]
        if end < self._next:  # the topic was made anew
            self._next, self._events = 0, []
        if end > self._next:
            found = [(at, event) for at, event in checkpoint_events(self._log, offset=self._next) if at < end]
            self._events += [event for _, event in found]
            self._next = end
