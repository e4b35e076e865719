"""A namespace of a real API server with the PolicyRollout definition: rollouts made, watched, changed as by kubectl."""

import time
import urllib.error
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from bench.rollout.pods import rollout
from tests.k8s.controlplane.cluster import ControlPlane

DEFINITION = Path(__file__).parents[2] / "k8s" / "crds" / "policyrollouts.yaml"
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"


def install_definition(plane: ControlPlane) -> None:
    """Server-side apply, as `kubectl apply --server-side` does it; returns when the resource is served."""
    definition = yaml.safe_load(DEFINITION.read_text(encoding="utf-8"))
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{definition['metadata']['name']}"
    plane.request("PATCH", f"{path}?fieldManager=test&force=true&fieldValidation=Strict", definition, _APPLY)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        conditions = plane.request("GET", path).get("status", {}).get("conditions") or ()
        if any(one["type"] == "Established" and one["status"] == "True" for one in conditions):
            return
        time.sleep(0.05)
    raise TimeoutError("the definition of PolicyRollout is not established after 20 seconds")


class Rollouts:
    """The PolicyRollouts of a new namespace."""

    def __init__(self, plane: ControlPlane) -> None:
        install_definition(plane)
        self.plane = plane
        self.namespace = f"t{uuid.uuid4().hex[:8]}"
        plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        self._path = f"/apis/anyloop.dev/v1alpha1/namespaces/{self.namespace}/policyrollouts"

    def create(self, name: str, **spec: Any) -> dict[str, Any]:
        """Raises urllib.error.HTTPError with the server's words when the definition's rules refuse it."""
        return dict(self.plane.request("POST", f"{self._path}?fieldValidation=Strict", rollout(name, spec)))

    def get(self, name: str) -> dict[str, Any]:
        return dict(self.plane.request("GET", f"{self._path}/{name}"))

    def gone(self, name: str) -> bool:
        try:
            self.get(name)
        except urllib.error.HTTPError as error:
            return error.code == 404
        return False

    def status(self, name: str) -> dict[str, Any]:
        return dict(self.get(name).get("status", {}))

    def change(self, name: str, spec: Mapping[str, Any]) -> None:
        self.plane.request("PATCH", f"{self._path}/{name}", {"spec": spec}, _MERGE)

    def annotate(self, name: str, annotations: Mapping[str, str]) -> None:
        self.plane.request("PATCH", f"{self._path}/{name}", {"metadata": {"annotations": dict(annotations)}}, _MERGE)

    def delete(self, name: str) -> None:
        self.plane.request("DELETE", f"{self._path}/{name}")

    def events(self) -> list[dict[str, Any]]:
        """Kubernetes events of the namespace."""
        return list(self.plane.request("GET", f"/api/v1/namespaces/{self.namespace}/events")["items"])

    def lease(self, name: str = "anyloop-controller") -> dict[str, Any]:
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{name}"
        return dict(self.plane.request("GET", path))

    def steal_lease(self, holder: str, name: str = "anyloop-controller") -> None:
        """Somebody else holds it from now on, as after a partition."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/{name}"
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + ".000000Z"
        self.plane.request("PATCH", path, {"spec": {"holderIdentity": holder, "renewTime": now}}, _MERGE)

    def until(
        self, name: str, holds: Callable[[dict[str, Any]], object], seconds: float = 40.0, what: str = ""
    ) -> dict[str, Any]:
        """The status once it `holds`. Raises TimeoutError that shows the last one."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                status = self.status(name)
                if holds(status):
                    return status
            except OSError as error:  # the API server is away
                status = {"error": repr(error)}
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} {what or 'does not come so far'} within {seconds:g} s: {status}")
            time.sleep(0.1)

    def until_phase(self, name: str, *phases: str, version: str = "", seconds: float = 40.0) -> dict[str, Any]:
        def holds(status: dict[str, Any]) -> bool:
            return status.get("phase") in phases and version in ("", status.get("targetVersion"))

        return self.until(name, holds, seconds, f"is not {' or '.join(phases)} ({version or 'any version'})")
