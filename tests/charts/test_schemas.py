"""Every rendered object against the schemas of three Kubernetes versions, and custom resources against their own."""

import functools
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.charts.rendering import ALL, CHART, ROOT, of_kind, rendered

# It reads a megabyte of definitions again for every object.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)

KUBERNETES = ("1.35", "1.36", "1.37")
FOREIGN = yaml.safe_load((Path(__file__).parent / "custom_resources.yaml").read_text())


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", ALL)
def test_every_object_fits_the_schema_of_kubernetes_strictly(name: str, version: str) -> None:
    builtin = [
        each for each in rendered(name) if each["apiVersion"] not in FOREIGN and "anyloop.dev" not in each["apiVersion"]
    ]
    assert len(builtin) > 40
    for each in builtin:
        kubernetes_validate.validate(each, version, strict=True)


def test_a_misspelt_field_would_be_found() -> None:
    (service, *_) = of_kind(rendered("defaults"), "Service")
    service["spec"]["clusterIp"] = "None"
    with pytest.raises(kubernetes_validate.ValidationError, match="clusterIp"):
        kubernetes_validate.validate(service, KUBERNETES[-1], strict=True)


@pytest.mark.parametrize("name", ALL)
def test_resources_of_other_operators_fit_their_definitions(name: str) -> None:
    for each in rendered(name):
        if each["apiVersion"] in FOREIGN:
            jsonschema.validate(each["spec"], FOREIGN[each["apiVersion"]][each["kind"]])


def test_everything_renders_each_kind_that_other_operators_bring() -> None:
    kinds = {each["kind"] for each in rendered("everything") if each["apiVersion"] in FOREIGN}
    assert kinds >= {"Certificate", "ScaledObject", "ServiceMonitor"}


def test_the_chart_carries_the_controllers_definition() -> None:
    ours = (ROOT / "k8s" / "crds" / "policyrollouts.yaml").read_bytes()
    assert (CHART / "crds" / "policyrollouts.yaml").read_bytes() == ours


@pytest.mark.parametrize("name", ALL)
def test_the_policy_rollout_fits_its_definition(name: str) -> None:
    (rollout,) = of_kind(rendered(name), "PolicyRollout")
    jsonschema.validate(rollout["spec"], rollout_schema())


def rollout_schema() -> dict[str, Any]:
    """The definition for JSON Schema: unknown fields are refused, as by `kubectl apply --validate=strict`."""
    definition = yaml.safe_load((CHART / "crds" / "policyrollouts.yaml").read_text())
    (version,) = definition["spec"]["versions"]
    return _closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    schema = {name: value for name, value in schema.items() if not name.startswith("x-kubernetes-")}
    if "properties" in schema:
        schema["properties"] = {name: _closed(value) for name, value in schema["properties"].items()}
        schema.setdefault("additionalProperties", False)
    if "items" in schema:
        schema["items"] = _closed(schema["items"])
    return schema
