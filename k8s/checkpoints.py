"""What the log says about versions, and the controller's own word on them. The log stays the truth: a replica that
starts reads it, not the cluster."""

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from anyloop import audit
from anyloop.log import CHECKPOINTS, EventLog, LogError
from anyloop.registry import announce, checkpoint_events
from anyloop.registry.announce import APPROVED, PROMOTED, REJECTED
from protos.anyloop.v1 import events_pb2

logger = logging.getLogger(__name__)

Announcement: TypeAlias = events_pb2.CheckpointEvent
_LONGEST_WAIT = 30.0


@dataclass
class Lineage:
    """The announcements of one lineage, folded."""

    stable: str = ""  # the newest promotion
    promoted_by: str = ""
    promoted_because: str = ""
    promoted_at: int = -1  # offset of that promotion in the log
    approved: Announcement | None = None  # the newest approval that nothing has overtaken
    overtaken: dict[str, Announcement] = field(default_factory=dict)  # approvals before it that nobody has decided
    newest: dict[str, Announcement] = field(default_factory=dict)  # the last word on each version
    offsets: dict[str, int] = field(default_factory=dict)  # where that word stands in the log
    offset: int = -1  # of the newest word on any

    def take(self, offset: int, event: Announcement) -> None:
        self.newest[event.version] = event
        self.offsets[event.version] = self.offset = offset
        self.overtaken.pop(event.version, None)
        if event.state in (APPROVED, PROMOTED):
            if self.approved is not None and self.approved.version != event.version:
                self.overtaken[self.approved.version] = self.approved
            self.approved = event if event.state == APPROVED else None
        elif event.state == REJECTED and self.approved is not None and self.approved.version == event.version:
            self.approved = None
        if event.state == PROMOTED:
            self.stable, self.promoted_by, self.promoted_because = event.version, event.decided_by, event.reason
            self.promoted_at = offset

    def rejected(self, version: str, after: int = -1) -> bool:
        """Whether that is the last word on it; one up to the offset `after` is none."""
        return self.offsets.get(version, -1) > after and self.newest[version].state == REJECTED

    def digest(self, version: str) -> str:
        """Of the version's weights; empty where the log does not say."""
        return self.newest[version].digest if version in self.newest else ""

    def report(self, version: str) -> dict[str, Any]:
        """The gate's evaluation of the version; empty where there is none."""
        event = self.newest.get(version)
        try:
            found: Any = json.loads(event.report_json) if event and event.report_json else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}


class Checkpoints:
    """Follows the announcements; `changed` hears the lineage of each new one. Calls of the log run on threads."""

    def __init__(self, log: EventLog, changed: Callable[[str], None], poll_seconds: float = 0.5) -> None:
        self._log = log
        self._changed = changed
        self._poll = poll_seconds
        self._next = 0
        self._lineages: defaultdict[str, Lineage] = defaultdict(Lineage)
        self._reading = asyncio.Lock()
        self.synced = asyncio.Event()
        self.failure = ""  # why the log cannot be read now; empty when it can

    def lineage(self, name: str) -> Lineage:
        return self._lineages[name]

    async def run(self) -> None:
        """Until cancelled. Raises a LogError that cannot pass."""
        wait = self._poll
        while True:
            try:
                await self.refresh()
                wait = self._poll
            except LogError as error:
                if not error.retriable:
                    raise
                if not self.failure:
                    logger.warning("the event log cannot be read; rollouts go on without new promotions: %s", error)
                self.failure, wait = str(error), min(wait * 2, _LONGEST_WAIT)
            await asyncio.sleep(wait)

    async def refresh(self) -> None:
        """Reads what was added. Raises LogError."""
        async with self._reading:
            events = await asyncio.to_thread(self._fetch)
            for offset, event in events:
                self._lineages[event.lineage].take(offset, event)
            self.failure = ""
            self.synced.set()
        for lineage in {event.lineage for _, event in events}:
            self._changed(lineage)

    async def promote(self, lineage: str, version: str, *, by: str, reason: str, audit_id: str) -> None:
        """Durable when it returns; once, however often it is asked. Raises LogError."""
        await self.refresh()
        if self._lineages[lineage].stable != version:
            await self._announce(lineage, version, PROMOTED, by, reason, audit_id)

    async def reject(self, lineage: str, version: str, *, by: str, reason: str, audit_id: str, after: int = -1) -> None:
        """Likewise, once since the offset `after`: a version may be tried again and fail again. Never of what serves,
        nor of a version that the log does not know: the newest word on a version is all that is kept of it."""
        await self.refresh()
        known = self._lineages[lineage]
        if version != known.stable and version in known.newest and not known.rejected(version, after):
            await self._announce(lineage, version, REJECTED, by, reason, audit_id)

    async def audit(
        self, *, action: str, subject: str, actor: str, reason: str, details: Mapping[str, Any], audit_id: str
    ) -> None:
        """An entry of the audit trail. What the log does not take stands in the process's log."""
        await asyncio.to_thread(
            audit.record,
            self._log,
            action=action,
            subject=subject,
            actor=actor,
            reason=reason,
            details=details,
            audit_id=audit_id,
        )

    async def _announce(self, lineage: str, version: str, state: int, by: str, reason: str, audit_id: str) -> None:
        before = self._lineages[lineage].newest.get(version, Announcement())
        await asyncio.to_thread(
            announce,
            self._log,
            lineage,
            version,
            state,
            parent=before.parent,
            digest=before.digest,
            reason=reason,
            decided_by=by,
            report=self._lineages[lineage].report(version),
            audit_id=audit_id,
        )
        await self.refresh()

    def _fetch(self) -> list[tuple[int, Announcement]]:
        end = self._log.end_offsets(CHECKPOINTS)[0]
        if end < self._next:
            logger.warning("the topic of announcements was made anew: it is read from its start")
            self._next = 0
            self._lineages.clear()
        if end == self._next:
            return []
        found = [(offset, event) for offset, event in checkpoint_events(self._log, offset=self._next) if offset < end]
        self._next = end
        return found
