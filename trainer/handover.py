"""What the learner tells the others about its versions, and what it waits to hear from log, gate and replicas."""

import asyncio
import logging
import time
from collections.abc import Sequence

from anyloop.log import EventLog
from anyloop.registry import Announcements, Manifest, announce
from anyloop.telemetry import metrics
from protos.anyloop.v1 import events_pb2
from trainer.clients import ServiceError, Services
from trainer.join import Joined

log = logging.getLogger(__name__)

PROMOTED = events_pb2.CheckpointEvent.STATE_PROMOTED
REJECTED = events_pb2.CheckpointEvent.STATE_REJECTED
APPROVED = events_pb2.CheckpointEvent.STATE_APPROVED
_SAY_S = 300.0  # between two log lines on a rollout that goes on


def promote_critic(event_log: EventLog, announcements: Announcements, published: Manifest) -> None:
    """Announces a critique model as the one to serve, once. No gate: nobody but the trainer asks it."""
    if published.version not in announcements.promotions("critique"):
        announce(
            event_log,
            "critique",
            published.version,
            "promoted",
            parent=published.parent,
            digest=published.weights_digest,
            reason=f"held-out critique loss {published.metrics.get('critique_loss_after')}",
            decided_by="trainer",
            audit_id=f"trainer/{published.version}/promoted",
        )


def announce_candidate(event_log: EventLog, announcements: Announcements, candidate: Manifest) -> None:
    """Puts a policy before the gate, once."""
    if not announcements.announced("policy", candidate.version):
        announce(
            event_log,
            "policy",
            candidate.version,
            "candidate",
            parent=candidate.parent,
            digest=candidate.weights_digest,
            decided_by="trainer",
        )


async def await_serving(
    services: Services, announcements: Announcements, lineage: str, version: str, seconds: float
) -> None:
    """Returns when the replica serves `version`, or the log has promoted another one since. Raises ServiceError."""
    deadline = time.monotonic() + seconds
    while (await services.status(lineage)).serving_version != version:
        if announcements.serving(lineage) != version:
            return
        if time.monotonic() > deadline:
            raise ServiceError(f"the {lineage} service does not serve {version} in time", retriable=True)
        await asyncio.sleep(0.1)


def await_gate(announcements: Announcements, version: str, timeout: float) -> events_pb2.CheckpointEvent | None:
    """The verdict on a candidate: promoted, rejected or approved; None when it takes longer than `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        decision = announcements.verdict("policy", version)
        if decision is not None:
            return decision
        if time.monotonic() >= deadline:
            log.warning("the gate has not decided on %s yet", version)
            return None
        time.sleep(0.2)


def await_rollout(announcements: Announcements, version: str, timeout: float) -> events_pb2.CheckpointEvent | None:
    """How the rollout of an approved version ended; None when another version is promoted or approved meanwhile, or
    when it takes longer than `timeout` seconds.

    What is learned in the meantime would begin at the version that is being replaced, so the learner waits.
    """
    began = said = time.monotonic()
    while True:
        waits = announcements.approved("policy") == version
        decision = announcements.decision("policy", version)  # asked last: it may have come since the line above
        now = time.monotonic()
        if decision is not None:
            return decision
        if not waits:
            log.warning("%s was approved, and another version overtook it", version)
            return None
        if now - began >= timeout:
            log.warning("the rollout of %s has not ended after %.0f s; learning goes on without it", version, timeout)
            return None
        if now - said >= _SAY_S:
            said = now
            log.info("%s is approved: waiting for its rollout since %.0f s", version, now - began)
        time.sleep(0.2)


def observe_delay(joined: Sequence[Joined]) -> None:
    """Records, now that weights which learned from it serve, how old each piece of feedback is."""
    for one in joined:
        metrics.FEEDBACK_TO_SERVING.observe(max(0.0, time.time() - one.feedback.created_unix_ms / 1000))
