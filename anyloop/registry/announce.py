"""What the log says about checkpoints. The newest promotion of a lineage names what should serve."""

import json
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from anyloop import audit
from anyloop.log import CHECKPOINTS, Event, EventLog, LogError, PoisonEvent
from protos.anyloop.v1 import events_pb2

logger = logging.getLogger(__name__)

State = events_pb2.CheckpointEvent.State
CANDIDATE = events_pb2.CheckpointEvent.STATE_CANDIDATE
PROMOTED = events_pb2.CheckpointEvent.STATE_PROMOTED
REJECTED = events_pb2.CheckpointEvent.STATE_REJECTED
APPROVED = events_pb2.CheckpointEvent.STATE_APPROVED

_ACTIONS = {PROMOTED: "promote", REJECTED: "reject", APPROVED: "approve"}  # decisions, which the audit trail keeps


def announce(
    log: EventLog,
    lineage: str,
    version: str,
    state: "events_pb2.CheckpointEvent.State | str | int",
    *,
    parent: str = "",
    digest: str = "",
    reason: str = "",
    decided_by: str = "",
    report: Mapping[str, Any] | None = None,
    action: str = "",
    audit_id: str = "",
) -> None:
    """Durable when it returns. `state` is a value of CheckpointEvent.State or a name ("promoted").

    A decision enters the audit trail first, so that none takes effect unseen: as `action` where its state does not say
    enough ("rollback"), under `audit_id` where a killed process may announce the same decision again. Raises LogError
    where the log does not take it, and the trail says that it failed.
    """
    message = events_pb2.CheckpointEvent(
        lineage=lineage,
        version=version,
        parent=parent,
        state=State.Value(f"STATE_{state.upper().removeprefix('STATE_')}") if isinstance(state, str) else state,
        digest=digest,
        reason=reason,
        decided_by=decided_by,
        created_unix_ms=time.time_ns() // 1_000_000,
        report_json=json.dumps(report) if report else "",
    )
    enter = partial(
        audit.record,
        log,
        action=action or _ACTIONS.get(message.state, ""),
        subject=version,
        actor=decided_by or "anyloop",
        details={"lineage": lineage, "digest": digest, "parent": parent},
        audit_id=audit_id or uuid.uuid4().hex,
    )
    entered = message.state in _ACTIONS and enter(reason=reason)
    try:
        log.append(CHECKPOINTS, Event.wrap(message, key=version, source=f"registry/{decided_by or 'anyloop'}"))
    except LogError as error:
        if entered:
            enter(outcome="failed", reason=f"the log did not confirm it: {error}")
        raise


def checkpoint_events(
    log: EventLog, lineage: str | None = None, *, offset: int = 0
) -> Iterator[tuple[int, events_pb2.CheckpointEvent]]:
    """The announcements in order, each with its offset. One that cannot be read is logged and passed over: it must not
    keep a replica from finding what to serve."""
    for record in log.read(CHECKPOINTS, partition=0, offset=offset):
        try:
            message = record.event.unwrap()
        except PoisonEvent as error:
            logger.error("checkpoint announcement at offset %d ignored: %s", record.offset, error)
            continue
        if isinstance(message, events_pb2.CheckpointEvent) and lineage in (None, message.lineage):
            yield record.offset, message


def serving_version(log: EventLog, lineage: str) -> str | None:
    """The newest promoted version, or None before the first promotion."""
    version = None
    for _, message in checkpoint_events(log, lineage):
        if message.state == PROMOTED:
            version = message.version
    return version
