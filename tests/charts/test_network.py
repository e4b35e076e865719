"""Network policies allow exactly the arrows of docs/kubernetes.md, which are those of the code."""

import re
from typing import Any

import pytest

from tests.charts.rendering import ALL, ROOT, Object, environment, of_kind, pod_specs, render, rendered

Arrow = tuple[str, str, str]  # from, to, ports
DOCUMENT = ROOT / "docs" / "kubernetes.md"
# Value of networkPolicy -> its name in the table.
_SAME = ("clients", "monitoring", "kafka", "credentials", "kubernetes", "prometheus", "collector")
OUTSIDE = {**dict(zip(_SAME, _SAME, strict=True)), "objectStorage": "objects"}
# All that the chart can draw, with names for what is outside; several nodes of the trainer among it.
WHOLE = {
    "trainer": {"nodes": 2, "home": {"accessModes": ["ReadWriteMany"]}},
    "media": {"url": "s3://media"},
    "model": {"source": "s3://models/base", "path": "/var/lib/anyloop-registry/.base"},
    "rollouts": {"prometheus": {"url": "http://prometheus:9090"}},
    "tracing": {"endpoint": "http://collector:4317"},
    "networkPolicy": {name: [{"podSelector": {"matchLabels": {"outside": name}}}] for name in OUTSIDE},
}


def policies(objects: list[Object]) -> dict[str, Object]:
    """Component -> its network policy's spec; `` for that of all pods."""
    found = {}
    for each in of_kind(objects, "NetworkPolicy"):
        found[each["spec"]["podSelector"]["matchLabels"].get("app.kubernetes.io/component", "")] = each["spec"]
    return found


def peer(given: dict[str, Any]) -> str:
    labels = given["podSelector"]["matchLabels"]
    if "outside" in labels:
        return f"[{OUTSIDE[labels['outside']]}]"
    assert labels["app.kubernetes.io/instance"] == "anyloop"
    return str(labels["app.kubernetes.io/component"])


def ports(rule: dict[str, Any]) -> str:
    said = []
    for port in rule["ports"]:
        assert port["protocol"] == "TCP"
        said.append(f"{port['port']}-{port['endPort']}" if "endPort" in port else str(port["port"]))
    return ", ".join(said)


def allowed(objects: list[Object]) -> tuple[set[Arrow], set[Arrow]]:
    """The arrows that ingress rules let in, and those that egress rules let out."""
    into: set[Arrow] = set()
    out: set[Arrow] = set()
    for component, spec in policies(objects).items():
        if not component:
            continue
        for rule in spec["ingress"] or []:
            into |= {(peer(each), component, ports(rule)) for each in rule["from"]}
        for rule in spec["egress"] or []:
            out |= {(component, peer(each), ports(rule)) for each in rule["to"]}
    return into, out


def documented() -> set[Arrow]:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.split("<!-- arrows -->")[1].split("<!-- /arrows -->")[0]
    rows = [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table.strip().splitlines()[2:]]
    return {
        (source, target, row[2])
        for row in rows
        for source in row[0].replace("`", "").split(", ")
        for target in row[1].replace("`", "").split(", ")
    }


def test_what_is_allowed_is_what_the_document_says_in_both_directions() -> None:
    into, out = allowed(render(WHOLE))
    inside = set(pod_specs(render(WHOLE)))
    assert into == {arrow for arrow in documented() if arrow[1] in inside}
    assert out == {arrow for arrow in documented() if arrow[0] in inside and arrow[1] != "[kafka]"}
    own = render({**WHOLE, "kafka": {"bundled": {"enabled": False}, "external": {"brokers": ["a:9093", "b:9094"]}}})
    outside = {arrow for arrow in allowed(own)[1] if arrow[1] == "[kafka]"}
    assert {source for source, _, _ in outside} == {source for source, to, _ in documented() if to == "kafka"}
    assert {ports for *_, ports in outside} == {"9093, 9094"}


@pytest.mark.parametrize("name", ALL)
def test_what_no_arrow_allows_is_denied(name: str) -> None:
    objects = rendered(name)
    found = policies(objects)
    everyone = found.pop("")
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everyone
    assert [[port["port"] for port in rule["ports"]] for rule in everyone["egress"]] == [[53, 53]]
    assert set(found) == set(pod_specs(objects))
    for spec in found.values():
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        # A rule without ports would allow all of them.
        assert all(rule["ports"] for rule in (spec["ingress"] or []) + (spec["egress"] or []))


def test_an_arrow_leaves_where_it_arrives() -> None:
    inside = set(pod_specs(render(WHOLE)))
    into, out = allowed(render(WHOLE))
    assert {arrow for arrow in into if arrow[0] in inside} == {arrow for arrow in out if arrow[1] in inside}


@pytest.mark.parametrize("name", ALL)
def test_every_address_that_a_component_is_told_is_one_that_it_may_reach(name: str) -> None:
    """Settings say whom a service dials; the policies must let it. Control ports: nobody from outside."""
    objects = rendered(name)
    found = policies(objects)
    for component in sorted(set(pod_specs(objects)) - {"kafka", "test"}):
        for variable, value in environment(objects, component).items():
            if not variable.endswith("_TARGET"):
                continue
            target = re.fullmatch(r"dns:///anyloop-([a-z-]+)\.demo\.svc:(\d+)", value)
            assert target, value
            assert reaches(found[component], target[1], int(target[2])), f"{component} -> {value}"
    for control in (50061, 50062):
        for component, spec in found.items():
            for rule in (spec.get("ingress") or []) if component else []:
                if control in {port["port"] for port in rule["ports"]}:
                    sources = {
                        each["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for each in rule["from"]
                    }
                    assert sources <= {"gateway", "trainer", "gate", "controller"}


def reaches(spec: Object, component: str, port: int) -> bool:
    return any(
        each.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component") == component
        for rule in spec["egress"] or []
        if port in {each["port"] for each in rule["ports"]}
        for each in rule.get("to", [])
    )


def test_ports_that_arrows_end_at_are_ports_of_their_pods() -> None:
    specs = pod_specs(render(WHOLE))
    for _, target, numbers in documented():
        if target not in specs:
            continue
        open_ports = {
            port["containerPort"]
            for container in (*specs[target].get("initContainers", []), *specs[target]["containers"])
            for port in container.get("ports", [])
        }
        for number in numbers.split(", "):
            assert int(number.split("-")[0]) in open_ports, f"{target}:{number}"


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://objects:9000", "443, 9000"), ("http://objects.storage.svc", "443, 80"), ("https://objects/", "443")],
    ids=["own port", "http", "https"],
)
def test_an_object_stores_own_port_is_open(url: str, port: str) -> None:
    values = {**WHOLE, "media": {"url": "s3://media", "s3": {"endpoint": url}}}
    assert {ports for _, to, ports in allowed(render(values))[1] if to == "[objects]"} == {port}


@pytest.mark.parametrize(
    ("values", "asking"),
    [
        ({"media": {"url": "s3://media"}}, {"gateway", "decoders", "gate"}),
        ({"media": {"url": "s3://media", "s3": {"existingSecret": "objects"}}}, set()),
        ({"model": {"source": "s3://models/base", "path": "/var/lib/anyloop-registry/.base"}}, {"bootstrap"}),
        ({"model": {"source": "hf://owner/base", "path": "/var/lib/anyloop-registry/.base"}}, set()),
        ({}, set()),
    ],
    ids=["media", "media with keys", "model", "model of a hub", "volumes"],
)
def test_keys_of_the_node_are_asked_for_by_those_who_open_s3_without_any(
    values: dict[str, Any], asking: set[str]
) -> None:
    addresses = {"169.254.169.254/32", "169.254.170.23/32"}  # instance metadata, pod identity
    found = {
        component
        for component, spec in policies(render(values)).items()
        for rule in (spec.get("egress") or [])
        if {peer["ipBlock"]["cidr"] for peer in rule.get("to", []) if "ipBlock" in peer} == addresses
        and rule["ports"] == [{"port": 80, "protocol": "TCP"}]
    }
    assert found == asking


def test_policies_can_be_left_to_others() -> None:
    assert not of_kind(render({"networkPolicy": {"enabled": False}}), "NetworkPolicy")
