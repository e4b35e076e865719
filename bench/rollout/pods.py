"""The objects by which a replica appears in a cluster. What a kubelet would report, tests and the bench report."""

from collections.abc import Mapping
from typing import Any

LABELS = {
    "app.kubernetes.io/name": "anyloop",
    "app.kubernetes.io/instance": "test",
    "app.kubernetes.io/component": "policy",
}


def pod(name: str, ports: Mapping[str, int], labels: Mapping[str, str] = LABELS) -> dict[str, Any]:
    """`ports` by name: grpc, control, metrics, health."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": dict(labels)},
        "spec": {
            "nodeName": "this-machine",
            "terminationGracePeriodSeconds": 0,
            "containers": [
                {
                    "name": "policy",
                    "image": "anyloop/services:test",
                    "ports": [{"name": port, "containerPort": number} for port, number in ports.items()],
                }
            ],
        },
    }


def pod_status(*, ready: bool, restarts: int = 0, ip: str = "127.0.0.1") -> dict[str, Any]:
    """A merge patch for the status subresource."""
    state = "True" if ready else "False"
    return {
        "status": {
            "phase": "Running",
            "podIP": ip,
            "podIPs": [{"ip": ip}],
            "conditions": [{"type": kind, "status": state} for kind in ("Ready", "ContainersReady")],
            "containerStatuses": [
                {
                    "name": "policy",
                    "ready": ready,
                    "restartCount": restarts,
                    "image": "anyloop/services:test",
                    "imageID": "",
                    "state": {"running": {}},
                }
            ],
        }
    }


def rollout(name: str, spec: Mapping[str, Any], labels: Mapping[str, str] = LABELS) -> dict[str, Any]:
    """A PolicyRollout of the pods with `labels`; by default it follows the approved versions."""
    filled = {
        "lineage": "policy",
        "selector": {"matchLabels": dict(labels)},
        "target": {"channel": "approved"},
        **spec,
    }
    return {"apiVersion": "anyloop.dev/v1alpha1", "kind": "PolicyRollout", "metadata": {"name": name}, "spec": filled}
