"""The chart on a real API server: applied, installed, upgraded, rolled back, uninstalled. No kubelet: nothing runs."""

import json
import tarfile
import time
import urllib.error
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Config

from tests.charts.rendering import ALL, CHART, Object, containers, example, of_kind, pod_specs, render
from tests.k8s.controlplane.cluster import ControlPlane

pytestmark = pytest.mark.slow
RELEASES = sorted((Path(__file__).parent / "releases").glob("anyloop-*.tgz"))
# What other operators bring to a cluster: here only their names, so that their resources can be stored.
FOREIGN = {
    "cert-manager.io/v1": ["Certificate"],
    "keda.sh/v1alpha1": ["ScaledObject"],
    "monitoring.coreos.com/v1": ["ServiceMonitor", "PrometheusRule"],
}


def plural(kind: str) -> str:
    return {"NetworkPolicy": "networkpolicies", "Ingress": "ingresses"}.get(kind, f"{kind.lower()}s")


def place(each: Object, namespace: str) -> str:
    version = each["apiVersion"]
    root = f"/api/{version}" if "/" not in version else f"/apis/{version}"
    if each["kind"] == "CustomResourceDefinition":
        return f"{root}/customresourcedefinitions"
    return f"{root}/namespaces/{namespace}/{plural(each['kind'])}"


def apply(plane: ControlPlane, each: Object, namespace: str) -> Object:
    """As `kubectl apply --server-side --validate=strict`."""
    path = f"{place(each, namespace)}/{each['metadata']['name']}?fieldManager=test&fieldValidation=Strict&force=true"
    return dict(plane.request("PATCH", path, each, "application/apply-patch+yaml"))


def definition(api_version: str, kind: str) -> Object:
    group, version = api_version.split("/")
    open_schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural(kind)}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural(kind), "singular": kind.lower()},
            "versions": [
                {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": open_schema}}
            ],
        },
    }


@pytest.fixture(scope="module")
def cluster(control_plane: ControlPlane) -> ControlPlane:
    """The control plane with the definitions that the chart's custom resources need."""
    ours = yaml.safe_load((CHART / "crds" / "policyrollouts.yaml").read_text())
    foreign = [definition(version, kind) for version, kinds in FOREIGN.items() for kind in kinds]
    for each in (ours, *foreign):
        apply(control_plane, each, "")
    for each in (ours, *foreign):
        _await_served(control_plane, each)
    return control_plane


def _await_served(plane: ControlPlane, each: Object) -> None:
    """A definition is established a moment before its resources are served."""
    group, names, (version, *_) = each["spec"]["group"], each["spec"]["names"], each["spec"]["versions"]
    for _ in range(200):
        try:
            plane.request("GET", f"/apis/{group}/{version['name']}/namespaces/default/{names['plural']}")
            return
        except urllib.error.HTTPError as error:
            if error.code not in (404, 429):
                raise
            time.sleep(0.05)
    raise AssertionError(f"{names['plural']}.{group} are not served")


@pytest.fixture
def namespace(cluster: ControlPlane) -> str:
    """Where only pods may be that Kubernetes calls restricted."""
    name = f"c{uuid.uuid4().hex[:8]}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
    return name


@pytest.fixture
def helm(cluster: ControlPlane, namespace: str) -> Iterator[Config]:
    with Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace) as config:
        yield config


@pytest.mark.parametrize("name", ALL)
def test_every_object_is_accepted_and_a_second_time_changes_nothing(
    cluster: ControlPlane, namespace: str, name: str
) -> None:
    objects = render(example(name))
    first = [apply(cluster, each, namespace) for each in objects]
    again = [apply(cluster, each, namespace) for each in objects]
    assert len(first) > 40
    assert [stored(each) for each in first] == [stored(each) for each in again]


def stored(each: Object) -> Object:
    """What was asked for and filled in. (A claim's version moves once without a change: its bookkeeping is sorted.)"""
    metadata = {
        name: value for name, value in each["metadata"].items() if name not in ("resourceVersion", "managedFields")
    }
    return {**each, "metadata": metadata}


@pytest.mark.parametrize("name", ALL)
def test_kubernetes_lets_every_pod_into_a_restricted_namespace(
    cluster: ControlPlane, namespace: str, name: str
) -> None:
    objects = render(example(name))
    for account in of_kind(objects, "ServiceAccount"):
        apply(cluster, account, namespace)
    for component, spec in pod_specs(objects).items():
        spec.pop("priorityClassName", None)
        spec.pop("runtimeClassName", None)  # of the node, which is not here
        volumes = {mount["name"] for each in containers(spec) for mount in each.get("volumeMounts", [])}
        listed = {volume["name"] for volume in spec.get("volumes", [])}
        missing = [{"name": volume, "emptyDir": {}} for volume in sorted(volumes - listed)]  # of claim templates
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": component},
            "spec": {**spec, "volumes": [*spec.get("volumes", []), *missing]},
        }
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods?fieldValidation=Strict&dryRun=All", pod)


def test_a_pod_that_asks_for_more_would_be_refused(cluster: ControlPlane, namespace: str) -> None:
    spec = pod_specs(render())["gate"]
    spec["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    for account in of_kind(render(), "ServiceAccount"):
        apply(cluster, account, namespace)
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "gate"}, "spec": spec}
    with pytest.raises(urllib.error.HTTPError, match="403"):
        cluster.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All", body)


@pytest.mark.parametrize("release", RELEASES, ids=[path.stem for path in RELEASES])
@pytest.mark.parametrize("name", ["defaults", "many-nodes"])
def test_a_release_is_installed_upgraded_to_this_chart_rolled_back_and_uninstalled(
    cluster: ControlPlane, namespace: str, helm: Config, release: Path, name: str
) -> None:
    values = example(name)
    policies = f"/apis/apps/v1/namespaces/{namespace}/statefulsets/anyloop-policy"
    apply(cluster, definition_of(release), "")
    helm.install(str(release), "anyloop", values, namespace=namespace)
    first = cluster.request("GET", policies)
    assert first["metadata"]["labels"]["helm.sh/chart"] == release.stem

    # As docs/kubernetes.md says: Helm never changes a definition.
    apply(cluster, yaml.safe_load((CHART / "crds" / "policyrollouts.yaml").read_text()), "")
    helm.upgrade(str(CHART), "anyloop", {**values, "logLevel": "DEBUG"}, namespace=namespace)
    second = cluster.request("GET", policies)
    assert second["metadata"]["uid"] == first["metadata"]["uid"], "it was made anew, with all its pods at once"
    assert second["metadata"]["labels"]["helm.sh/chart"] == f"anyloop-{chart_version()}"
    checksum = "checksum/config"
    assert annotations(second)[checksum] != annotations(first)[checksum]

    helm.rollback("anyloop", version=1)
    third = cluster.request("GET", policies)
    assert third["metadata"]["uid"] == first["metadata"]["uid"]
    assert third["spec"]["template"] == first["spec"]["template"]
    assert [each["revision"] for each in revisions(helm)] == [1, 2, 3]

    helm.uninstall("anyloop")
    left = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/statefulsets")["items"]
    assert left == []
    claims = cluster.request("GET", f"/api/v1/namespaces/{namespace}/persistentvolumeclaims")["items"]
    assert "anyloop-registry" in {claim["metadata"]["name"] for claim in claims}, "checkpoints went with the release"


def definition_of(release: Path) -> Object:
    """The definition that came with a release: beside another one, Helm would not install it."""
    with tarfile.open(release) as packed:
        member = packed.extractfile("anyloop/crds/policyrollouts.yaml")
        assert member is not None
        return dict(yaml.safe_load(member.read()))


def test_autoscaling_takes_a_fleet_over_as_it_stands(cluster: ControlPlane, namespace: str, helm: Config) -> None:
    """Without a number in the manifest Kubernetes would go to one pod until the autoscaler acts."""
    apps = f"/apis/apps/v1/namespaces/{namespace}"
    places = {
        "gateway": f"{apps}/statefulsets/anyloop-gateway",
        "policy": f"{apps}/statefulsets/anyloop-policy",
        "decoders": f"{apps}/deployments/anyloop-decoders",
    }

    def replicas() -> dict[str, int]:
        return {name: cluster.request("GET", path)["spec"]["replicas"] for name, path in places.items()}

    fixed = {"gateway": 3, "policy": 5, "decoders": 2}
    helm.install(
        str(CHART), "anyloop", {name: {"replicas": count} for name, count in fixed.items()}, namespace=namespace
    )
    assert replicas() == fixed
    scaled = {name: {"autoscaling": {"kind": "hpa", "minReplicas": 3}} for name in places}
    helm.upgrade(str(CHART), "anyloop", scaled, namespace=namespace)
    assert replicas() == {"gateway": 3, "policy": 5, "decoders": 3}
    # The autoscaler has added one; an upgrade of something else leaves it.
    cluster.request("PATCH", places["policy"], {"spec": {"replicas": 6}}, "application/merge-patch+json")
    helm.upgrade(str(CHART), "anyloop", {**scaled, "logLevel": "DEBUG"}, namespace=namespace)
    assert replicas()["policy"] == 6


def test_what_kubernetes_never_lets_change_is_refused_here_too(
    cluster: ControlPlane, namespace: str, helm: Config
) -> None:
    """So that the test above cannot pass because nobody looks."""
    helm.install(str(CHART), "anyloop", {}, namespace=namespace)
    with pytest.raises(Exception, match=r"(?i)forbidden|immutable"):
        helm.upgrade(str(CHART), "anyloop", {"outbox": {"size": "9Gi"}}, namespace=namespace)


def test_the_policy_rollouts_rules_hold_for_the_charts_values(
    cluster: ControlPlane, namespace: str, helm: Config
) -> None:
    canary_without_steps = {"rollouts": {"policy": {"spec": {"strategy": {"type": "Canary", "steps": []}}}}}
    with pytest.raises(Exception, match="a canary needs steps"):
        helm.install(str(CHART), "anyloop", canary_without_steps, namespace=namespace)
    for number, spec in enumerate(({"strategy": {"type": "AllAtOnce"}}, {"target": {"version": "policy-000007"}})):
        values = {"fullnameOverride": f"loop-{number}", "rollouts": {"policy": {"spec": spec}}}
        helm.install(str(CHART), f"loop-{number}", values, namespace=namespace)


def test_the_controllers_account_may_do_its_work_and_nothing_else(
    cluster: ControlPlane, namespace: str, helm: Config
) -> None:
    helm.install(str(CHART), "anyloop", {}, namespace=namespace)
    account = "anyloop-controller"
    rollouts, leases = "anyloop.dev/policyrollouts", "coordination.k8s.io/leases"
    for verb, resource, named, allowed in (
        ("watch", rollouts, "", True),
        ("patch", f"{rollouts}/status", "anyloop-policy", True),
        ("update", rollouts, "anyloop-policy", True),
        ("watch", "/pods", "", True),
        ("create", "/events", "", True),
        ("create", leases, "", True),
        ("update", leases, "anyloop-controller", True),
        ("update", leases, "another", False),
        ("delete", "/pods", "anyloop-policy-0", False),
        ("get", "/secrets", "", False),
        ("patch", "apps/statefulsets", "anyloop-policy", False),
        ("create", "/pods/exec", "anyloop-policy-0", False),
    ):
        assert may(cluster, namespace, account, verb, resource, named) is allowed, (verb, resource, named)
    assert not may(cluster, namespace, "anyloop", "list", "/pods", "")


def may(plane: ControlPlane, namespace: str, account: str, verb: str, resource: str, name: str) -> bool:
    group, _, kind = resource.partition("/")
    kind, _, part = kind.partition("/")
    attributes = {
        "namespace": namespace,
        "verb": verb,
        "group": group,
        "resource": kind,
        "subresource": part,
        "name": name,
    }
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{namespace}:{account}",
            "groups": ["system:serviceaccounts", f"system:serviceaccounts:{namespace}"],
            "resourceAttributes": attributes,
        },
    }
    answer = plane.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def annotations(stateful_set: Object) -> dict[str, str]:
    return dict(stateful_set["spec"]["template"]["metadata"]["annotations"])


def revisions(helm: Config) -> list[dict[str, Any]]:
    return list(json.loads(json.dumps(helm.history("anyloop"))))


def chart_version() -> str:
    return str(yaml.safe_load((CHART / "Chart.yaml").read_text())["version"])
