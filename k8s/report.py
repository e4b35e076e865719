"""The status of a PolicyRollout from a decision and what was observed."""

from collections.abc import Mapping, Sequence
from typing import Any

from k8s import conditions, timestamps
from k8s.conditions import Condition
from k8s.decide import Decision, World
from k8s.fleet import Fleet
from k8s.run import COMPLETED
from k8s.verdicts import Measurement

_MOST_GIVEN_UP = 100  # versions that are remembered
_MOVING = ("Progressing", "Analyzing", "AwaitingAdvance", "Promoting", "RollingBack")
_BAD = ("RolledBack", "RollingBack", "Conflicted")
# What may wait for the next write of a status: it changes with every replica that changes.
COUNTS = ("replicas", "versions", "message", "mixedSince")


def status_of(
    world: World,
    decision: Decision,
    fleet: Fleet,
    measured: Sequence[Measurement],
    before: Mapping[str, Any],
    generation: int,
    log_failure: str,
) -> dict[str, Any]:
    run = decision.run
    history = list(world.history)
    if decision.ended is not None:
        history.insert(0, decision.ended)
    target = run.version if run is not None else world.lineage.stable
    versions = fleet.versions
    on_target, stable = versions[target], versions[world.lineage.stable]
    now = timestamps.written(world.now)
    status: dict[str, Any] = {
        "observedGeneration": generation,
        "phase": decision.phase,
        "message": decision.message,
        "stableVersion": world.lineage.stable,
        "targetVersion": target,
        "stepSummary": f"{run.step + 1}/{run.steps}" if run is not None else "",
        "replicas": {
            "total": world.seen.total,
            "ready": world.seen.usable,
            "target": on_target,
            "stable": stable,
            "other": versions.total() - on_target - (stable if target != world.lineage.stable else 0),
            "unreachable": world.seen.unreachable,
            "swapping": world.seen.swapping,
        },
        "versions": [{"version": version, "replicas": count} for version, count in sorted(versions.items())],
        "analysis": [one.to_status() for one in measured],
        "givenUp": _given_up(world, decision),
        "history": [one.to_status() for one in history[: world.spec.history_limit]],
        "conditions": conditions.updated(
            before.get("conditions", ()), _conditions(world, decision, fleet, log_failure), generation, now
        ),
    }
    if len(versions) > 1:
        status["mixedSince"] = before.get("mixedSince", now)
    if decision.handled:
        status["handledTarget"] = decision.handled
    if run is not None:
        status["run"] = run.to_status()
    return status


def _given_up(world: World, decision: Decision) -> list[str]:
    """The newest first. Apart from the history, which may be as short as its owner likes: a replica that is away for
    long comes back on such a version."""
    found = list(world.given_up)
    if decision.ended is not None:
        found = [one for one in found if one != decision.ended.version]
        if decision.ended.outcome != COMPLETED:
            found.insert(0, decision.ended.version)
    return found[:_MOST_GIVEN_UP]


def _conditions(world: World, decision: Decision, fleet: Fleet, log_failure: str) -> list[Condition]:
    seen = world.seen
    moving = decision.run is not None and decision.phase in _MOVING
    if log_failure:
        degraded = Condition(
            "Degraded", True, "LogUnavailable", f"no promotion can be announced or seen: {log_failure}"
        )
    elif decision.phase in _BAD:
        degraded = Condition("Degraded", True, decision.reason, decision.message)
    elif seen.unreachable:
        degraded = Condition("Degraded", True, "ReplicasUnreachable", fleet.why_unreachable)
    elif moving and fleet.trouble:
        degraded = Condition("Degraded", True, "ChangeFailed", fleet.trouble)
    elif failing := [pod.name for pod in fleet.usable if (served := fleet.served(pod)) and served.failure]:
        served = fleet.served(next(pod for pod in fleet.usable if pod.name == failing[0]))
        why = f"{len(failing)} replicas could not switch, the first is {failing[0]}: {served.failure if served else ''}"
        degraded = Condition("Degraded", True, "SwapFailed", why)
    else:
        degraded = Condition("Degraded", False, "AsExpected")
    ready = f"{seen.usable} of {seen.total} replicas are ready"
    mixed = len(fleet.versions) > 1
    return [
        Condition("Progressing", moving, decision.reason, decision.message if moving else ""),
        Condition("Available", seen.usable > 0, "ReplicasReady" if seen.usable else "NoReplica", ready),
        Condition("Mixed", mixed, "SeveralVersions" if mixed else "OneVersion"),
        Condition("Paused", decision.phase == "Paused", "Paused" if decision.phase == "Paused" else "NotPaused"),
        degraded,
    ]


def differs(status: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the status is to be written: at once, or sometime soon because only counts changed."""

    def steady(one: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in one.items() if name not in (*COUNTS, "conditions", "run")}
        kept["conditions"] = {(found["type"], found["status"], found["reason"]) for found in one.get("conditions", ())}
        # How far a step has come is a count too; that it came to its end is not.
        kept["run"] = {name: value for name, value in one.get("run", {}).items() if name not in ("peak", "progressAt")}
        return kept

    if steady(status) != steady(before):
        return True, True
    return False, dict(status) != dict(before)
