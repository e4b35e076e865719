"""A PolicyRollout in the controller's own metrics."""

from collections.abc import Mapping
from typing import Any

from anyloop.telemetry import metrics
from k8s import timestamps
from k8s.informer import Key

PHASES = (
    "Pending",
    "Idle",
    "Progressing",
    "Analyzing",
    "AwaitingAdvance",
    "Paused",
    "Promoting",
    "RollingBack",
    "Completed",
    "RolledBack",
    "Superseded",
    "Aborted",
    "Conflicted",
)


def show(key: Key, status: Mapping[str, Any], shown: set[str], now: float) -> set[str]:
    """Sets the metrics; the versions that have one now. `shown`: those that had one before."""
    versions = {one["version"]: one["replicas"] for one in status["versions"]}
    for version in shown - set(versions):
        metrics.ROLLOUT_REPLICAS.remove(*key, version)
    for version, count in versions.items():
        metrics.ROLLOUT_REPLICAS.labels(*key, version).set(count)
    for phase in PHASES:
        metrics.ROLLOUT_PHASE.labels(*key, phase).set(phase == status["phase"])
    since = timestamps.read(status.get("mixedSince"))
    metrics.ROLLOUT_MIXED.labels(*key).set(max(0.0, now - since) if since is not None else 0.0)
    return set(versions)


def forget(key: Key, shown: set[str]) -> None:
    """The PolicyRollout is gone, or another controller shows it."""
    for version in shown:
        metrics.ROLLOUT_REPLICAS.remove(*key, version)
    if shown:
        metrics.ROLLOUT_MIXED.remove(*key)
        for phase in PHASES:
            metrics.ROLLOUT_PHASE.remove(*key, phase)
