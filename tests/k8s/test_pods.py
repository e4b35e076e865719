from k8s.pods import Pod, in_order
from tests.k8s.simulated_fleet import pod_object


def pod(name: str = "policy-0", **changes: object) -> Pod:
    return Pod.read(pod_object(name, **changes))  # type: ignore[arg-type]


def test_a_ready_pod_with_a_control_port_can_be_changed() -> None:
    found = pod()
    assert found.usable
    assert found.control_address == "10.0.0.1:50061"
    assert found.metrics_url == ""


def test_a_pod_that_ends_or_is_not_ready_or_has_no_address_cannot() -> None:
    ending = pod_object("policy-0")
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    bare = pod_object("policy-0")
    del bare["status"]["podIP"]
    assert not Pod.read(ending).usable
    assert not Pod.read(bare).usable
    assert not pod(ready=False).usable


def test_a_pod_without_the_named_port_is_no_replica() -> None:
    other = pod_object("gateway-0")
    other["spec"]["containers"][0]["ports"][0]["name"] = "http"
    assert not Pod.read(other).usable


def test_only_a_restart_of_the_replicas_own_container_is_a_new_incarnation() -> None:
    document = pod_object("policy-0")
    document["spec"]["containers"].append({"name": "triton", "ports": []})
    document["status"]["containerStatuses"].append({"name": "triton", "restartCount": 5})
    assert Pod.read(document).incarnation == pod().incarnation
    assert pod(restarts=1).incarnation != pod().incarnation


def test_an_ipv6_address_is_written_in_brackets() -> None:
    document = pod_object("policy-0")
    document["status"]["podIP"] = "fd00::1"
    document["spec"]["containers"][0]["ports"].append({"name": "metrics", "containerPort": 9100})
    assert Pod.read(document).control_address == "[fd00::1]:50061"
    assert Pod.read(document).metrics_url == "http://[fd00::1]:9100/metrics"


def test_the_highest_ordinals_go_first() -> None:
    names = [one.name for one in in_order([pod("policy-2"), pod("policy-10"), pod("policy-x"), pod("policy-0")])]
    assert names == ["policy-10", "policy-2", "policy-0", "policy-x"]
