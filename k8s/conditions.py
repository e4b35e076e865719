"""Conditions of a status: the time of a transition moves only when the status does."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    type: str
    status: bool
    reason: str
    message: str = ""


def updated(
    before: Iterable[Mapping[str, Any]], conditions: Iterable[Condition], generation: int, now: str
) -> list[dict[str, Any]]:
    known = {one["type"]: one for one in before}
    found = []
    for one in conditions:
        status = "True" if one.status else "False"
        last = known.get(one.type)
        since = last["lastTransitionTime"] if last and last["status"] == status else now
        found.append(
            {
                "type": one.type,
                "status": status,
                "reason": one.reason,
                "message": one.message,
                "lastTransitionTime": since,
                "observedGeneration": generation,
            }
        )
    return found
