"""Kubernetes events on a PolicyRollout: what `kubectl describe` tells an operator. Each once: their names say what they
tell of, and the server refuses a name that it has."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from k8s import timestamps
from k8s.api import EVENTS, Api, ApiError
from k8s.spec import API_VERSION, KIND

logger = logging.getLogger(__name__)

_LONGEST_MESSAGE = 1024


@dataclass(frozen=True)
class Notice:
    """`about` tells it apart from others of the same reason: a run, a step of it."""

    reason: str
    message: str
    about: str
    warning: bool = False
    audit: str = ""  # an action of the audit trail, where it belongs there
    actor: str = ""


async def tell(api: Api, rollout: Mapping[str, Any], notice: Notice, reporter: str, now: float) -> None:
    """Best effort: an event that cannot be written is logged and forgotten."""
    metadata = rollout["metadata"]
    namespace = metadata["namespace"]
    digest = hashlib.sha256(f"{metadata['uid']}/{notice.about}/{notice.reason}".encode()).hexdigest()[:16]
    at = timestamps.written(now)
    second = at[:19] + "Z"
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name'][:200]}.{digest}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata["name"],
            "namespace": namespace,
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": "Warning" if notice.warning else "Normal",
        "reason": notice.reason,
        "message": notice.message[:_LONGEST_MESSAGE],
        "source": {"component": "anyloop-controller"},
        "reportingComponent": "anyloop.dev/controller",
        "reportingInstance": reporter[:128],
        "action": notice.reason,
        "eventTime": at,
        "firstTimestamp": second,
        "lastTimestamp": second,
        "count": 1,
    }
    try:
        await api.create(EVENTS, namespace, body)
    except ApiError as error:
        if not error.conflict:
            logger.warning("the event %s of %s was not written: %s", notice.reason, metadata["name"], error)
