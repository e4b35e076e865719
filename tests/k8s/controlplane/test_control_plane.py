"""The fixture itself: what the other tests lean on is really there."""

import subprocess
import urllib.error
import uuid
from pathlib import Path

import pytest

from tests.k8s.controlplane import build
from tests.k8s.controlplane.cluster import ControlPlane

pytestmark = pytest.mark.slow


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    name = f"t{uuid.uuid4().hex[:8]}"
    control_plane.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    return name


def test_it_is_the_pinned_version_of_kubernetes(control_plane: ControlPlane) -> None:
    assert control_plane.request("GET", "/version")["gitVersion"] == f"v{build.kubernetes_version()}"


def test_objects_are_validated_and_survive_a_killed_api_server(control_plane: ControlPlane, namespace: str) -> None:
    maps = f"/api/v1/namespaces/{namespace}/configmaps"
    with pytest.raises(urllib.error.HTTPError, match="422"):
        control_plane.request("POST", maps, {"metadata": {"name": "Not A Name"}})
    control_plane.request("POST", maps, {"metadata": {"name": "kept"}, "data": {"a": "1"}})
    control_plane.restart_apiserver()
    assert control_plane.request("GET", f"{maps}/kept")["data"] == {"a": "1"}


def test_a_service_account_may_do_what_rbac_grants_and_nothing_else(
    control_plane: ControlPlane, namespace: str
) -> None:
    control_plane.request("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": {"name": "reader"}})
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}"
    control_plane.request(
        "POST",
        f"{rbac}/roles",
        {"metadata": {"name": "reader"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]},
    )
    control_plane.request(
        "POST",
        f"{rbac}/rolebindings",
        {
            "metadata": {"name": "reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
        },
    )
    reader = control_plane.service_account(namespace, "reader")
    assert reader("GET", f"/api/v1/namespaces/{namespace}/pods")["items"] == []
    with pytest.raises(urllib.error.HTTPError, match="403"):
        reader("GET", f"/api/v1/namespaces/{namespace}/secrets")


def test_without_go_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(build.ControlPlaneMissing, match=r"install Go 1\.26"):
        build.programs()


def test_a_build_that_fails_leaves_nothing_and_shows_what_go_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        build.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "go: no such module")
    )
    with pytest.raises(build.ControlPlaneMissing, match="go: no such module"):
        build.programs()
    assert [path.name for path in (tmp_path / "anyloop").iterdir()] == ["kubernetes.lock"]
