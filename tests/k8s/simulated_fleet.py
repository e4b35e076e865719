"""Replicas in memory behind the port that the controller changes them through."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from k8s.pods import Pod
from k8s.replicas import Fault, ReplicaError, Served


def pod_object(name: str, *, ready: bool = True, restarts: int = 0, labels: dict[str, str] | None = None) -> dict:
    """A pod as the API server has it."""
    return {
        "metadata": {"name": name, "labels": labels or {"app": "policy"}},
        "spec": {"containers": [{"name": "policy", "ports": [{"name": "control", "containerPort": 50061}]}]},
        "status": {
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "policy", "restartCount": restarts, "containerID": "c"}],
        },
    }


@dataclass
class SimulatedFleet:
    """Satisfies k8s.replicas.Replicas. A replica that was never changed serves `stable`."""

    stable: str = "v1"
    serving: dict[str, str] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)  # versions that no replica takes
    broken: set[str] = field(default_factory=set)  # versions whose load fails
    seconds: float = 0.0  # that a change takes
    asked: int = 0
    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    together: int = 0
    most_together: int = 0

    async def status(self, pod: Pod) -> Served:
        self.asked += 1
        if pod.name in self.away:
            raise ReplicaError(f"{pod.name}: UNAVAILABLE: nobody there")
        version = self.serving.get(pod.name, self.stable)
        return Served(version, f"digest of {version}")

    async def activate(self, pod: Pod, version: str, mode: str) -> Served:
        if pod.name in self.away:
            raise ReplicaError(f"{pod.name}: UNAVAILABLE: nobody there")
        if version in self.refused:
            raise ReplicaError(f"{pod.name}: FAILED_PRECONDITION: {version} is corrupt", Fault.REFUSED)
        if version in self.broken:
            raise ReplicaError(f"{pod.name}: INTERNAL: it broke", Fault.BROKE)
        self.together += 1
        self.most_together = max(self.most_together, self.together)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.together -= 1
        self.changes[pod.name, version] += 1
        self.serving[pod.name] = version
        return Served(version, f"digest of {version}")
