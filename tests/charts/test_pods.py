"""Rules for every pod of the chart: what it may do, what it must say, and how it ends."""

import re
from typing import Any

import pytest

from bench.rollout import controller
from services.rpc.server import LIVENESS
from tests.charts.rendering import ALL, containers, environment, named, of_kind, pod_specs, render, rendered

PODS = [(name, component) for name in ALL for component in sorted(pod_specs(rendered(name)))]
ENDS_BY_ITSELF = {"bootstrap", "test"}


def spec_of(name: str, component: str) -> dict[str, Any]:
    return pod_specs(rendered(name))[component]


@pytest.mark.parametrize(("name", "component"), PODS)
def test_a_pod_is_nobody_and_can_change_nothing_of_its_node(name: str, component: str) -> None:
    spec = spec_of(name, component)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
    for container in containers(spec):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize(("name", "component"), PODS)
def test_a_container_has_limits_and_an_image_that_says_its_version(name: str, component: str) -> None:
    for container in containers(spec_of(name, component)):
        assert {"cpu", "memory"} <= set(container["resources"]["limits"]), container["name"]
        assert re.search(r":[0-9]+\.[0-9]+\.[0-9]+$|@sha256:[0-9a-f]{64}$", container["image"]), container["image"]


@pytest.mark.parametrize(("name", "component"), [pair for pair in PODS if pair[1] not in ENDS_BY_ITSELF])
def test_a_container_that_stays_has_all_three_probes(name: str, component: str) -> None:
    for container in containers(spec_of(name, component)):
        wanted = {"startupProbe", "livenessProbe", *([] if container["name"] == "triton" else ["readinessProbe"])}
        assert wanted <= set(container), container["name"]


@pytest.mark.parametrize(("name", "component"), PODS)
def test_a_probe_asks_a_port_that_its_container_has(name: str, component: str) -> None:
    for container in containers(spec_of(name, component)):
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            for kind, what in container.get(probe, {}).items():
                if kind in ("httpGet", "tcpSocket", "grpc"):
                    assert what["port"] in {*ports, *ports.values()}


def test_a_replica_without_weights_or_log_is_left_running() -> None:
    """Restarted, it would lose the weights that it still has: liveness asks only whether the process answers."""
    for component in ("policy", "policy-lab", "critique", "decoders"):
        (container,) = spec_of("defaults", component)["containers"]
        for probe in ("startupProbe", "livenessProbe"):
            assert container[probe]["grpc"] == {"port": 8086, "service": LIVENESS}
        assert container["readinessProbe"]["grpc"] == {"port": 8086}


@pytest.mark.parametrize(("name", "component"), PODS)
def test_every_mount_has_its_volume_and_all_that_is_written_has_one(name: str, component: str) -> None:
    objects = rendered(name)
    claims = {
        each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/component"]: {
            claim["metadata"]["name"] for claim in each["spec"].get("volumeClaimTemplates", [])
        }
        for each in of_kind(objects, "StatefulSet")
    }
    spec = spec_of(name, component)
    volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims.get(component, set())
    mounted = set()
    for container in containers(spec):
        paths = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        mounted |= {mount["name"] for mount in container.get("volumeMounts", [])}
        if component not in ("kafka", "test"):
            assert {"/var/lib/anyloop", "/tmp"} <= paths
    assert mounted == volumes


@pytest.mark.parametrize(("name", "component"), PODS)
def test_only_the_controller_can_talk_to_kubernetes(name: str, component: str) -> None:
    spec = spec_of(name, component)
    assert spec["automountServiceAccountToken"] is (component == "controller")
    assert spec["serviceAccountName"] == ("anyloop-controller" if component == "controller" else "anyloop")


def test_the_controllers_rights_are_those_that_its_tests_run_with() -> None:
    (role,) = of_kind(rendered("defaults"), "Role")
    assert role["rules"] == controller._RULES


def test_the_controllers_rights_are_in_its_namespace_and_for_what_it_does() -> None:
    objects = rendered("everything")
    assert not of_kind(objects, "ClusterRole", "ClusterRoleBinding")
    (role,) = of_kind(objects, "Role")
    (binding,) = of_kind(objects, "RoleBinding")
    assert [subject["name"] for subject in binding["subjects"]] == ["anyloop-controller"]
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert "*" not in {part for grant in granted for part in grant}
    assert {resource for _, resource, verb in granted if verb in ("delete", "deletecollection")} == set()
    assert {verb for _, resource, verb in granted if resource == "pods"} == {"get", "list", "watch"}
    leases = [rule for rule in role["rules"] if rule["resources"] == ["leases"] and rule["verbs"] != ["create"]]
    held = environment(objects, "controller")["ANYLOOP_CONTROLLER_LEASE_NAME"]
    assert [rule["resourceNames"] for rule in leases] == [[held]]


@pytest.mark.parametrize(("name", "component"), PODS)
def test_services_do_not_reach_pods_as_variables(name: str, component: str) -> None:
    """A Service anyloop-policy would set ANYLOOP_POLICY_PORT=tcp://..., which is a setting of ours: a number."""
    assert spec_of(name, component)["enableServiceLinks"] is False


@pytest.mark.parametrize("component", ["gateway", "policy", "policy-lab", "critique", "decoders"])
@pytest.mark.parametrize("longest", [5, 120, 600])
def test_a_pod_that_ends_may_finish_its_longest_answer(component: str, longest: int) -> None:
    objects = render({"drain": {"longestResponseSeconds": longest, "preStopSeconds": 7, "flushSeconds": 25}})
    spec, given = pod_specs(objects)[component], environment(objects, component)
    assert spec["terminationGracePeriodSeconds"] == 7 + longest + 25
    assert spec["containers"][0]["lifecycle"]["preStop"] == {"sleep": {"seconds": 7}}
    assert float(given["ANYLOOP_DRAIN_SECONDS"]) == float(given["ANYLOOP_REQUEST_TIMEOUT_S"]) == longest


def test_triton_starts_before_its_service_and_ends_after_it() -> None:
    for component in ("policy", "policy-lab", "critique", "decoders"):
        (sidecar,) = spec_of("defaults", component)["initContainers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("triton", "Always")
    assert not [part for part, spec in pod_specs(rendered("laptop")).items() if "initContainers" in spec]


def test_the_edge_says_whether_it_speaks_tls() -> None:
    for name, protocol in (("defaults", "kubernetes.io/h2c"), ("everything", "https")):
        objects = rendered(name)
        ports = named(objects, "Service", "anyloop-gateway")["spec"]["ports"]
        assert {port["name"]: port["appProtocol"] for port in ports}["grpc"] == protocol
        assert ("ANYLOOP_EDGE_TLS_CERT" in environment(objects, "gateway")) is (protocol == "https")


def test_triton_reads_weights_and_is_told_no_secret() -> None:
    objects = rendered("many-nodes")
    for component in ("policy", "policy-lab", "critique", "decoders"):
        spec = pod_specs(objects)[component]
        (sidecar,), (service,) = spec["initContainers"], spec["containers"]
        secret = {volume["name"] for volume in spec["volumes"] if "secret" in volume}
        assert {mount["name"] for mount in service["volumeMounts"]} & secret
        mounts = {mount["name"]: mount for mount in sidecar["volumeMounts"]}
        assert not set(mounts) & secret
        assert mounts["registry"]["readOnly"] is True
        assert "env" not in sidecar


def test_a_services_own_variables_are_not_tritons() -> None:
    """A secret that a service needs stays with the service."""
    mine = {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "token"}}}
    its = {"name": "CUDA_VISIBLE_DEVICES", "value": "0"}
    for component, key in (("policy", "policy"), ("policy-lab", "lab"), ("critique", "critique")):
        spec = pod_specs(render({key: {"extraEnv": [mine], "triton": {"extraEnv": [its]}}}))[component]
        (sidecar,), (service,) = spec["initContainers"], spec["containers"]
        assert sidecar["env"] == [its]
        assert mine in service["env"]
        assert its not in service["env"]


def test_tritons_log_goes_where_containers_are_read_and_not_to_the_outboxes_disk() -> None:
    for component in ("policy", "policy-lab", "critique", "decoders"):
        assert "--log-to-stdout" in tritons_arguments(component)


def test_tritons_metrics_are_found_by_number_in_the_pods_that_have_them() -> None:
    """Older clusters do not resolve a named port of a sidecar; another pod's port 8002 would be a target down."""
    objects = render({"monitoring": {"serviceMonitor": {"enabled": True}}})
    service = named(objects, "Service", "anyloop-metrics-triton")
    (port,) = service["spec"]["ports"]
    assert (port["name"], port["targetPort"]) == ("triton-metrics", 8002)
    (monitor,) = of_kind(objects, "ServiceMonitor")
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} == {"metrics", "triton-metrics"}
    assert service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items()
    chosen = {
        component
        for each in of_kind(objects, "Deployment", "StatefulSet")
        for labels in [each["spec"]["template"]["metadata"]["labels"]]
        for component in [labels["app.kubernetes.io/component"]]
        if labels.items() >= service["spec"]["selector"].items()
    }
    assert chosen == {part for part, spec in pod_specs(objects).items() if "initContainers" in spec}
    alone = render({"host": "inprocess", "monitoring": {"serviceMonitor": {"enabled": True}}})
    (monitor,) = of_kind(alone, "ServiceMonitor")
    assert [endpoint["port"] for endpoint in monitor["spec"]["endpoints"]] == ["metrics"]


@pytest.mark.parametrize(("longest", "period"), [(5, 60), (600, 625), (7200, 1800)])
def test_a_fleet_shrinks_by_one_in_the_time_of_a_drain_as_far_as_kubernetes_allows(longest: int, period: int) -> None:
    objects = render({"drain": {"longestResponseSeconds": longest}, "gateway": {"autoscaling": {"kind": "hpa"}}})
    (scaler,) = of_kind(objects, "HorizontalPodAutoscaler")
    assert scaler["spec"]["behavior"]["scaleDown"]["policies"] == [
        {"type": "Pods", "value": 1, "periodSeconds": period}
    ]


def test_pods_that_open_a_cloud_store_may_be_named_to_it_and_the_controller_is_not() -> None:
    role = {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/loop"}
    accounts = of_kind(render({"serviceAccount": {"annotations": role}}), "ServiceAccount")
    given = {each["metadata"]["name"]: each["metadata"].get("annotations") for each in accounts}
    assert given == {"anyloop": role, "anyloop-controller": None}


def test_only_those_who_make_or_name_versions_can_change_the_registry() -> None:
    writers, readers = set(), set()
    for component, spec in pod_specs(rendered("defaults")).items():
        for container in containers(spec):
            for mount in container.get("volumeMounts", []):
                if mount["name"] == "registry":
                    (readers if mount.get("readOnly") else writers).add(f"{component}/{container['name']}")
    assert {name.split("/")[0] for name in writers} == {
        "policy",
        "policy-lab",
        "critique",
        "trainer",
        "gate",
        "bootstrap",
    }
    assert readers == {"policy/triton", "policy-lab/triton", "critique/triton"}


def test_the_accelerator_belongs_to_the_process_with_the_model() -> None:
    gpu = {"nvidia.com/gpu": 1}
    spec = spec_of("one-gpu-node", "policy")
    assert spec["initContainers"][0]["resources"]["limits"].items() >= gpu.items()
    assert "nvidia.com/gpu" not in spec["containers"][0]["resources"]["limits"]
    assert spec["runtimeClassName"] == "nvidia"
    spec = pod_specs(render({"host": "inprocess", "policy": {"gpu": {"count": 1}}}))["policy"]
    assert spec["containers"][0]["resources"]["limits"].items() >= gpu.items()
    assert spec["containers"][0]["image"] == "anyloop/inprocess:0.1.0"


def test_triton_takes_the_arguments_it_is_given() -> None:
    """The launcher parses what the chart passes; building the repository alone needs no Triton."""
    from services.hosts.interface import MODELS

    given = [argument for part in ("policy", "critique", "decoders") for argument in tritons_arguments(part)]
    assert {argument.removeprefix("--model=") for argument in given if argument.startswith("--model=")} == set(MODELS)


def tritons_arguments(component: str) -> list[str]:
    return list(spec_of("defaults", component)["initContainers"][0]["args"])


@pytest.mark.parametrize("component", ["policy", "critique", "decoders"])
def test_triton_starts_with_the_charts_arguments(
    component: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from services.triton.__main__ import main

    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path))
    assert main([*tritons_arguments(component), "--build-only"]) == 0
    assert str(tmp_path) in capsys.readouterr().out


def test_the_bootstrap_takes_the_charts_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from anyloop import bootstrap

    said: dict[str, Any] = {}
    monkeypatch.setenv("ANYLOOP_HOME", str(tmp_path))
    monkeypatch.setattr(bootstrap, "configure", lambda *_: None)
    monkeypatch.setattr(bootstrap, "fetch_model", lambda source, target: said.update(source=source))
    monkeypatch.setattr(bootstrap, "make_topics", lambda settings, wait: said.update(wait=wait))
    monkeypatch.setattr(bootstrap, "import_bases", lambda settings: None)
    (container,) = spec_of("many-nodes", "bootstrap")["containers"]
    assert bootstrap.main(container["args"]) == 0
    assert said == {"source": "s3://models/omni-7b", "wait": 600.0}


def test_a_training_spans_nodes_and_each_knows_its_place() -> None:
    objects = rendered("many-nodes")
    (trainer,) = [each for each in of_kind(objects, "StatefulSet") if each["metadata"]["name"] == "anyloop-trainer"]
    (container,) = trainer["spec"]["template"]["spec"]["containers"]
    assert trainer["spec"]["replicas"] == 4
    assert trainer["spec"]["podManagementPolicy"] == "Parallel"
    assert container["command"] == ["python", "-m", "torch.distributed.run"]
    assert container["args"][:5] == [
        "--nnodes=4",
        "--nproc-per-node=8",
        "--node-rank=$(NODE_RANK)",
        "--master-addr=anyloop-trainer-0.anyloop-trainer.demo.svc",
        "--master-port=29500",
    ]
    assert container["args"][-2:] == ["-m", "trainer"]
    (rank,) = [each for each in container["env"] if each["name"] == "NODE_RANK"]
    assert rank["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.labels['apps.kubernetes.io/pod-index']"
    (service,) = [each for each in of_kind(objects, "Service") if each["metadata"]["name"] == "anyloop-trainer"]
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert pod_specs(rendered("defaults"))["trainer"]["containers"][0]["command"] == ["python", "-m", "trainer"]


@pytest.mark.parametrize("name", ALL)
def test_the_trainer_is_never_scaled_and_what_is_scaled_has_no_number_of_its_own(name: str) -> None:
    objects = rendered(name)
    scaled = {
        each["spec"]["scaleTargetRef"]["name"] for each in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject")
    }
    assert scaled <= {"anyloop-gateway", "anyloop-policy", "anyloop-decoders"}
    for each in of_kind(objects, "Deployment", "StatefulSet"):
        assert ("replicas" in each["spec"]) is (each["metadata"]["name"] not in scaled)


@pytest.mark.parametrize("name", ALL)
def test_every_workload_with_several_copies_survives_the_drain_of_a_node(name: str) -> None:
    objects = rendered(name)
    guarded = {each["metadata"]["name"] for each in of_kind(objects, "PodDisruptionBudget")}
    several = {
        each["metadata"]["name"]
        for each in of_kind(objects, "Deployment", "StatefulSet")
        if each["spec"].get("replicas", 2) > 1 and each["metadata"]["name"] != "anyloop-trainer"
    }
    assert several <= guarded
    for component in ("gateway", "policy", "decoders"):
        assert pod_specs(objects)[component]["topologySpreadConstraints"]
