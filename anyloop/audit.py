"""The audit trail: who changed what serves, or who may call. Written beside the act, kept for ever.

The trail is an own topic of the log, never compacted (the announcements of checkpoints are: they keep only the newest
word on a version), and every entry is a line of the process's own log as well, so that two places have to be silenced.
"""

import getpass
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from anyloop.log import AUDIT, Event, EventLog, LogError, PoisonEvent, Record
from anyloop.telemetry.metrics import AUDIT_FAILURES
from protos.anyloop.v1 import events_pb2

logger = logging.getLogger(__name__)


def record(
    log: EventLog,
    *,
    action: str,
    subject: str,
    actor: str,
    reason: str = "",
    outcome: str = "done",
    details: Mapping[str, Any] | None = None,
    audit_id: str = "",
) -> bool:
    """Appends one entry; durable when it returns True. Blocks as an append does: not for an event loop.

    `action`: promote, rollback, reject, approve, rollout.start/step/pause/resume/abort/complete/rollback, keys.reload.
    `audit_id`: the same for the same act where a killed process may say it twice; readers count it once.

    Never raises a LogError: an emergency rollback must not wait for its entry. Where the log does not take it the whole
    entry stands in the process's log as an error, `anyloop_audit_failures_total` counts it, and False comes back.
    """
    message = events_pb2.AuditEvent(
        audit_id=audit_id or uuid.uuid4().hex,
        action=action,
        subject=subject,
        actor=actor,
        reason=reason,
        outcome=outcome,
        details_json=json.dumps(details, default=str, sort_keys=True) if details else "",
        host=socket.gethostname(),
        created_unix_ms=time.time_ns() // 1_000_000,
    )
    try:
        log.append(AUDIT, Event.wrap(message, key=subject, source=f"audit/{actor}", id=message.audit_id))
    except LogError as error:
        AUDIT_FAILURES.inc()
        logger.error("the audit trail lacks this entry (%s): %s", error, _sentence(message), extra=_fields(message))
        return False
    logger.info("%s", _sentence(message), extra=_fields(message))
    return True


def audit_events(
    log: EventLog,
    *,
    since: datetime | None = None,
    offset: int | None = None,
    end: int | None = None,
    seen: dict[str, str] | None = None,
) -> Iterator[tuple[Record, events_pb2.AuditEvent]]:
    """The entries in order, each act once, and again where its outcome has changed: what failed may be done after all.

    `end` is an offset to stop before; `seen` holds what was shown, for who goes on later. What cannot be read is logged
    and passed over. Raises UnknownTopic.
    """
    outcomes = {} if seen is None else seen
    partition = None if offset is None else 0
    for entry in log.read(AUDIT, partition=partition, offset=offset, since=since):
        if end is not None and entry.offset >= end:
            return
        try:
            message = entry.event.unwrap()
        except PoisonEvent as error:
            logger.error("audit entry at offset %d ignored: %s", entry.offset, error)
            continue
        if isinstance(message, events_pb2.AuditEvent) and outcomes.get(message.audit_id) != message.outcome:
            outcomes[message.audit_id] = message.outcome
            yield entry, message


def operator() -> str:
    """Who sits at this terminal, as USER@HOST. A user id without a name, as in a container, stands as its number."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _fields(message: events_pb2.AuditEvent) -> dict[str, str]:
    return {
        "audit_id": message.audit_id,
        "audit_action": message.action,
        "audit_subject": message.subject,
        "audit_actor": message.actor,
        "audit_outcome": message.outcome,
        "audit_reason": message.reason,
        "audit_details": message.details_json,
    }


def _sentence(message: events_pb2.AuditEvent) -> str:
    because = f": {message.reason}" if message.reason else ""
    return f"audit: {message.actor} {message.action} {message.subject}, {message.outcome}{because}"
