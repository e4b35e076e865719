"""The controller as a process: `python -m k8s`, with the rights of a service account and nothing more."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from anyloop.cli.child import Child
from bench.rollout.rollouts import Rollouts
from tests.k8s.controlplane.program import free_ports

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
# What the chart's Role grants.
_RULES = [
    {
        "apiGroups": ["anyloop.dev"],
        "resources": ["policyrollouts"],
        "verbs": ["get", "list", "watch", "update", "patch"],
    },
    {
        "apiGroups": ["anyloop.dev"],
        "resources": ["policyrollouts/status", "policyrollouts/finalizers"],
        "verbs": ["get", "update", "patch"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": ["", "events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
    {
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": ["anyloop-controller"],
        "verbs": ["get", "update", "patch"],
    },
]
# A test's patience: seconds become tenths.
FAST = {
    "ANYLOOP_CONTROLLER_LEASE_SECONDS": "3",
    "ANYLOOP_CONTROLLER_RENEW_SECONDS": "2",
    "ANYLOOP_CONTROLLER_RETRY_SECONDS": "0.3",
    "ANYLOOP_CONTROLLER_OBSERVE_SECONDS": "0.5",
    "ANYLOOP_CONTROLLER_IDLE_SECONDS": "1",
    "ANYLOOP_CONTROLLER_STATUS_SECONDS": "0.2",
    "ANYLOOP_CONTROLLER_LOG_POLL_SECONDS": "0.1",
    "ANYLOOP_CONTROLLER_CALL_SECONDS": "2",
}


def service_account(rollouts: Rollouts, name: str = "controller") -> Path:
    """A kubeconfig with the controller's rights in this namespace."""
    plane, namespace = rollouts.plane, rollouts.namespace
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    plane.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": name}})
    plane.request("POST", f"{rbac}/roles", {"metadata": {"name": name}, "rules": _RULES})
    plane.request(
        "POST",
        f"{rbac}/rolebindings",
        {
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        },
    )
    return plane.service_account_kubeconfig(namespace, name)


class Controller:
    """`with Controller(...) as controller: controller.kill()`. Starts at once."""

    def __init__(
        self,
        folder: Path,
        kubeconfig: Path,
        namespace: str,
        log_url: str,
        identity: str = "a",
        command: Sequence[str] = (sys.executable, "-m", "k8s"),
        pace: Mapping[str, str] = FAST,
    ) -> None:
        self._command = command
        self._folder = folder
        self._identity = identity
        self._metrics, self._health = free_ports(2)
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("ANYLOOP_")},
            "OMP_NUM_THREADS": "1",
            "ANYLOOP_HOME": str(folder / identity),
            "ANYLOOP_LOG_URL": log_url,
            "ANYLOOP_METRICS_PORT": str(self._metrics),
            "ANYLOOP_HEALTH_PORT": str(self._health),
            "ANYLOOP_CONTROLLER_KUBECONFIG": str(kubeconfig),
            "ANYLOOP_CONTROLLER_NAMESPACE": namespace,
            "ANYLOOP_CONTROLLER_IDENTITY": identity,
            **pace,
        }
        self.child = self._start()

    @property
    def pid(self) -> int:
        return self.child.pid

    def kill(self) -> None:
        """`kill -9`."""
        self.child.kill()

    def restart(self) -> None:
        self.child.kill()
        self.child = self._start()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with that name and these labels; 0 where nobody answers."""
        return sum(value for found, value in self.samples(name) if labels.items() <= found.items())

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        try:
            text = httpx.get(f"http://127.0.0.1:{self._metrics}/metrics", timeout=5.0, trust_env=False).text
        except httpx.HTTPError:
            return []
        families = text_string_to_metric_families(text)
        return [(dict(one.labels), one.value) for family in families for one in family.samples if one.name == name]

    def await_leading(self, seconds: float = _START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self.metric("anyloop_controller_is_leader"):
            if self.child.exit_status() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"controller {self._identity} does not lead:\n{self.child.log_tail()}")
            time.sleep(0.1)

    def __enter__(self) -> "Controller":
        return self

    def __exit__(self, *_: Any) -> None:
        self.child.terminate()
        deadline = time.monotonic() + _STOP_SECONDS
        while self.child.exit_status() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        self.child.kill()

    def _start(self) -> Child:
        log = self._folder / f"controller-{self._identity}.log"
        return Child(self._command, self._environment, log)
