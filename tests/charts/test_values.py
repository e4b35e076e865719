"""What may be set, what may not, and what the answer to a wrong value says."""

import copy
import functools
import json
import re
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError
from hypothesis import HealthCheck, given, settings

from k8s import verdicts
from k8s.scrape import Sample
from k8s.spec import ErrorRate, Spec
from k8s.verdicts import Verdict
from tests.charts.rendering import ALL, CHART, environment, example, of_kind, pod_specs, render, rendered
from tests.charts.value_strategies import SCHEMA, overrides

SERVICE_LEVELS = CHART / "rules" / "slo.yaml"


@pytest.mark.parametrize("name", ALL)
def test_the_chart_lints_without_a_word(name: str) -> None:
    report = helm_python.lint(str(CHART), example(name), strict=True)
    messages = [message for message in report["messages"] if "icon is recommended" not in message["error"]]
    assert (messages, report["errors"]) == ([], [])


def test_the_schema_describes_every_value_and_no_other() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(SCHEMA["properties"]) - {"global"} == set(values)
    for path, schema in sections(SCHEMA, ()):
        assert schema["additionalProperties"] is False, path
        assert set(schema["properties"]) - {"global"} == set(place(values, path)), ".".join(path)


OPTIONAL = {"images", "tls.existingSecrets"}  # sections whose defaults are empty or are named otherwise


def sections(schema: dict[str, Any], path: tuple[str, ...]) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    found = [(path, schema)] if path else []
    for name, part in schema["properties"].items():
        if (
            "properties" in part
            and part.get("additionalProperties") is False
            and ".".join((*path, name)) not in OPTIONAL
        ):
            found += sections(part, (*path, name))
    return found


def place(values: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for part in path:
        values = values[part]
    return values


REFUSED = {
    "misspelt": ({"polcy": {"replicas": 2}}, "polcy"),
    "misspelt deeper": ({"gateway": {"replcas": 2}}, "replcas"),
    "wrong type": ({"gateway": {"replicas": "two"}}, "replicas"),
    "none at all": ({"gateway": {"replicas": 0}}, "replicas"),
    "number as a setting": ({"settings": {"ANYLOOP_ENGINE_SLOTS": 8}}, "ANYLOOP_ENGINE_SLOTS"),
    "somebody else's variable": ({"settings": {"PATH": "/"}}, "PATH"),
    "latest": ({"images": {"gateway": {"repository": "anyloop/gateway", "tag": "latest"}}}, "tag"),
    "no digest": ({"images": {"gateway": {"digest": "sha256:1"}}}, "digest"),
    "root": ({"runAs": {"user": 0}}, "user"),
    "no limits": ({"gate": {"resources": {"limits": {"cpu": None, "memory": "1Gi"}}}}, "cpu"),
    "unknown host": ({"host": "vllm"}, "host"),
    "a selector of one's own": ({"rollouts": {"policy": {"spec": {"selector": {}}}}}, "spec"),
    "two logs": ({"kafka": {"external": {"brokers": ["kafka:9092"]}}}, "set kafka.bundled.enabled=false"),
    "no log": ({"kafka": {"bundled": {"enabled": False}}}, "set kafka.external.brokers"),
    "no password": (
        {"kafka": {"bundled": {"enabled": False}, "external": {"brokers": ["a:1"], "securityProtocol": "SASL_SSL"}}},
        "needs kafka.external.existingSecret: a Secret with the keys username and password",
    ),
    "no lab": ({"lab": {"enabled": False}}, "set lab.enabled=true, or policy.replicas=1 without autoscaling"),
    "no lab, scaled": (
        {"lab": {"enabled": False}, "policy": {"replicas": 1, "autoscaling": {"kind": "hpa"}}},
        "set lab.enabled=true, or policy.replicas=1 without autoscaling",
    ),
    "nodes on one disk": ({"trainer": {"nodes": 2}}, "set trainer.home.accessModes=[ReadWriteMany]"),
    "nodes without a registry": (
        {
            "trainer": {"nodes": 2, "home": {"accessModes": ["ReadWriteMany"]}},
            "registry": {"accessModes": ["ReadWriteOnce"]},
        },
        "set registry.accessModes=[ReadWriteMany]",
    ),
    "no issuer": ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "tls.certManager.issuerRef.name"),
    "no certificates": ({"tls": {"enabled": True}}, "tls.existingSecrets.gateway"),
    "one certificate missing": (
        {"tls": {"enabled": True, "existingSecrets": dict.fromkeys(["gateway", "policy"], "x")}},
        "certificates for policy-lab: set tls.certManager.enabled=true, tls.existingSecret for all, or "
        "tls.existingSecrets.lab",
    ),
    "open to the world": ({"gateway": {"service": {"type": "LoadBalancer"}}}, "set auth.existingSecret"),
    "an ingress for nobody": (
        {"gateway": {"ingress": {"enabled": True}}, "auth": {"allowAnonymous": True}},
        "needs gateway.ingress.host",
    ),
    "upside down": (
        {"gateway": {"autoscaling": {"kind": "hpa", "minReplicas": 9, "maxReplicas": 3}}},
        "minReplicas=9 is above maxReplicas=3",
    ),
    "scaled by nothing": ({"gateway": {"autoscaling": {"kind": "hpa", "cpuPercent": 0}}}, "set cpuPercent"),
    "asking nobody": ({"policy": {"autoscaling": {"kind": "keda"}}}, "needs policy.autoscaling.prometheusUrl"),
    "a model without a place": ({"model": {"source": "s3://models/base"}}, "model.source needs model.path"),
    "an authority without TLS": (
        {"kafka": {"bundled": {"enabled": False}, "external": {"brokers": ["a:1"], "caKey": "ca.crt"}}},
        "kafka.external.caKey is for TLS, and kafka.external.securityProtocol=PLAINTEXT has none: set it to SSL",
    ),
    "a certificate of no Secret": (
        {
            "kafka": {
                "bundled": {"enabled": False},
                "external": {"brokers": ["a:1"], "securityProtocol": "SSL", "clientCertificate": True},
            }
        },
        "kafka.external.clientCertificate needs kafka.external.existingSecret",
    ),
    "a store that the images have no client for": ({"media": {"url": "gs://media"}}, "url"),
    "a model that the images cannot fetch": (
        {"model": {"source": "gs://models/base", "path": "/var/lib/anyloop-registry/.base"}},
        "source",
    ),
    "a label that selectors go by": (
        {"lab": {"podLabels": {"app.kubernetes.io/component": "x"}}},
        "lab.podLabels: app.kubernetes.io/component is a label by which the chart's objects find one another: choose",
    ),
    "a label of all objects that is the chart's": (
        {"commonLabels": {"app.kubernetes.io/part-of": "x"}},
        "commonLabels: app.kubernetes.io/part-of is",
    ),
    "an endpoint of nothing": (
        {"media": {"s3": {"endpoint": "https://objects"}}},
        "set it, or leave the endpoint empty",
    ),
}


@pytest.mark.parametrize(("values", "said"), REFUSED.values(), ids=REFUSED)
def test_a_wrong_value_is_refused_by_name_with_what_to_do(values: dict[str, Any], said: str) -> None:
    with pytest.raises(HelmError) as refused:
        render(values)
    assert said in str(refused.value)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(overrides())
def test_values_that_the_schema_allows_make_valid_objects_or_say_what_to_do(values: dict[str, Any]) -> None:
    try:
        objects = render(copy.deepcopy(values))
    except HelmError as error:
        if "anyloop: " not in str(error):
            raise
        return
    assert {"gateway", "policy", "critique", "decoders"} <= set(pod_specs(objects))
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    for each in objects:
        assert len(each["metadata"]["name"]) <= 63
        if "." not in each["apiVersion"] or each["apiVersion"].split("/")[0].endswith(".k8s.io"):
            valid(json.dumps(each, sort_keys=True))


@functools.cache
def valid(text: str) -> None:
    """Most objects of most values are the same."""
    kubernetes_validate.validate(json.loads(text), "1.37", strict=True)


def test_generated_values_reach_most_of_the_schema() -> None:
    """Else the test above would say little: which values were set at least once."""
    reached: set[str] = set()

    @settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(overrides())
    def collect(values: dict[str, Any]) -> None:
        reached.update(paths(values, ""))

    collect()
    wanted = paths(yaml.safe_load((CHART / "values.yaml").read_text()), "")
    missing = {path for path in wanted if not any(path.startswith(seen) or seen.startswith(path) for seen in reached)}
    assert len(missing) < 0.5 * len(wanted)


def paths(values: Any, prefix: str) -> set[str]:
    if not isinstance(values, dict) or not values:
        return {prefix}
    return {path for name, value in values.items() for path in paths(value, f"{prefix}.{name}")}


@pytest.mark.parametrize("name", ALL)
def test_rules_and_dashboards_are_the_files_beside_the_chart(name: str) -> None:
    objects = render({**example(name), "monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}})
    rules = {each["metadata"]["name"]: each["spec"] for each in of_kind(objects, "PrometheusRule")}
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "rules").glob("*.yaml")}
    assert rules == {f"anyloop-{stem}": content for stem, content in files.items()}
    boards = {
        name: json.loads(text)
        for each in of_kind(objects, "ConfigMap")
        if "-dashboard-" in each["metadata"]["name"]
        for name, text in each["data"].items()
    }
    assert boards == {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert files
    assert boards


def test_runbooks_are_where_their_readers_are() -> None:
    def runbooks(**rules: Any) -> list[str]:
        objects = render({"monitoring": {"rules": {"enabled": True, **rules}}})
        groups = [group for each in of_kind(objects, "PrometheusRule") for group in each["spec"]["groups"]]
        alerts = [rule for group in groups for rule in group["rules"] if "alert" in rule]
        return [rule["annotations"]["runbook_url"] for rule in alerts]

    plain = runbooks()
    assert all(url.startswith("docs/operations.md#") for url in plain)
    for base in ("https://wiki.example.com/loop", "https://wiki.example.com/loop/"):
        assert runbooks(runbookBase=base) == [f"https://wiki.example.com/loop/{url}" for url in plain]


@pytest.mark.parametrize("name", ["many-nodes", "defaults"])
def test_a_rollouts_pauses_leave_most_of_the_time_that_is_promised_from_feedback_to_service(name: str) -> None:
    (rollout,) = of_kind(rendered(name), "PolicyRollout")
    pauses = [str(step["pause"]) for step in rollout["spec"]["strategy"]["steps"]]
    seconds = sum(int(pause.removesuffix("m")) * (60 if pause.endswith("m") else 1) for pause in pauses)
    (promised,) = set(re.findall(r'feedback_to_serving_seconds_bucket{le="([0-9.]+)"}', SERVICE_LEVELS.read_text()))
    assert 0 < seconds <= float(promised) / 2


def notes(values: dict[str, Any]) -> str:
    with Chart.load(CHART) as chart:
        rendered = chart.render(values, name="anyloop", namespace="demo")
    return next(text for path, text in rendered.items() if path.endswith("NOTES.txt"))


def test_the_operator_hears_that_a_volume_may_stay_pending() -> None:
    assert "set registry and media.storageClassName, or accessModes" in notes({})
    assert "set registry.storageClassName, or accessModes" in notes({"media": {"url": "s3://media"}})
    assert "Pending" not in notes(example("laptop"))
    assert "Pending" not in notes(example("many-nodes"))


def test_another_strategy_or_target_takes_the_place_of_the_defaults() -> None:
    """Helm merges values, and the definition refuses AllAtOnce with steps, and a version beside a channel."""

    def spec(**given: Any) -> dict[str, Any]:
        (rollout,) = of_kind(render({"rollouts": {"policy": {"spec": given}}}), "PolicyRollout")
        return dict(rollout["spec"])

    assert spec()["target"] == {"channel": "approved"}
    assert spec(target={"version": "policy-000007"})["target"] == {"version": "policy-000007"}
    assert spec(strategy={"type": "AllAtOnce"})["strategy"] == {"type": "AllAtOnce"}
    assert spec()["strategy"]["steps"]


def test_the_default_analysis_judges_a_single_replica_and_rejects_nothing_for_want_of_requests() -> None:
    (rollout,) = of_kind(render(), "PolicyRollout")
    analysis = Spec.parse(rollout["spec"]).analysis
    (metric,) = analysis.metrics
    assert not analysis.waits
    assert isinstance(metric.test, ErrorRate)
    alone = verdicts.of_errors(
        metric.name, metric.test, Sample(succeeded=50, failed=50), None, analysis.minimum_requests
    )
    assert alone.verdict is Verdict.FAILED
    text = notes({})
    assert "With fewer than 20 requests in a step it is promoted unjudged" in text
    waiting = {"analysis": {"onInconclusive": "Wait"}}
    assert "unjudged" not in notes({"rollouts": {"policy": {"spec": waiting}}})


def test_two_releases_in_one_namespace_leave_each_others_rollouts_alone() -> None:
    for release in ("blue", "green"):
        objects = render(release=release)
        (rollout,) = of_kind(objects, "PolicyRollout")
        key, _, value = environment(objects, "controller")["ANYLOOP_CONTROLLER_ROLLOUT_SELECTOR"].partition("=")
        assert rollout["metadata"]["labels"][key] == value == release
    assert "with the label\napp.kubernetes.io/instance: anyloop" in notes({"rollouts": {"policy": {"enabled": False}}})


@pytest.mark.parametrize("release", ["anyloop", "loop", "a-very-long-release-name-that-goes-on-and-on-for-ever"])
def test_names_fit_whatever_the_release_is_called(release: str) -> None:
    for each in render(release=release):
        # A StatefulSet's pods carry its name and a hash as a label of 63 characters.
        assert len(each["metadata"]["name"]) <= (52 if each["kind"] == "StatefulSet" else 63)
    assert len({each["metadata"]["name"] for each in of_kind(render(release=release), "StatefulSet")}) == 6


def test_a_release_whose_services_could_not_be_made_is_refused() -> None:
    with pytest.raises(HelmError, match=r"begin with a digit, which Kubernetes refuses: set fullnameOverride"):
        render(release="7-loops")
    assert render({"fullnameOverride": "loops"}, release="7-loops")


def test_images_come_from_the_registry_and_by_digest_where_one_is_given() -> None:
    digest = "sha256:" + "0" * 64
    values = {"images": {"registry": "registry.example.com/team", "gateway": {"digest": digest}}}
    specs = pod_specs(render(values))
    assert specs["gateway"]["containers"][0]["image"] == f"registry.example.com/team/anyloop/gateway@{digest}"
    assert specs["kafka"]["containers"][0]["image"] == "registry.example.com/team/apache/kafka:4.3.1"
