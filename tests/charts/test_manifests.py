"""The manifests for those without Helm are what the chart makes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.manifests import BASE, main, manifests
from tests.charts.rendering import EXAMPLES, NAMESPACE, render


def objects_of(files: dict[str, str]) -> list[dict[str, Any]]:
    return [each for name, text in files.items() if name != "kustomization.yaml" for each in yaml.safe_load_all(text)]


def test_the_base_is_up_to_date() -> None:
    """Else: `python -m k8s.manifests`."""
    assert {path.name: path.read_text() for path in BASE.glob("*.yaml")} == manifests({})


def test_the_base_lists_all_its_files_and_holds_every_object_of_the_chart_but_its_test() -> None:
    files = manifests({})
    kustomization = yaml.safe_load(files["kustomization.yaml"])
    assert {*kustomization["resources"], "kustomization.yaml"} == set(files)
    there = manifests({}, namespace=NAMESPACE)
    held = {(each["kind"], each["metadata"]["name"]) for each in objects_of(there)}
    charts = {(each["kind"], each["metadata"]["name"]) for each in render({})}
    assert held - charts == {("Namespace", NAMESPACE), ("CustomResourceDefinition", "policyrollouts.anyloop.dev")}
    assert charts - held == {("Pod", "anyloop-test")}


def test_nothing_in_it_speaks_of_helm() -> None:
    for name, text in manifests({}).items():
        if name != "definitions.yaml":
            assert "helm.sh" not in text, name
            assert "managed-by: Helm" not in text, name


def test_a_base_of_ones_own_replaces_what_an_earlier_one_left(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kind: Secret\n")
    assert main(["--output", str(tmp_path)]) == 0
    assert (tmp_path / "policy-lab.yaml").exists()
    arguments = ["--values", str(EXAMPLES["laptop"]), "--output", str(tmp_path), "--namespace", "home"]
    assert main(arguments) == 0
    assert not (tmp_path / "policy-lab.yaml").exists()
    assert (tmp_path / "mine.yaml").exists()
    assert yaml.safe_load((tmp_path / "kustomization.yaml").read_text())["namespace"] == "home"
    config = yaml.safe_load_all((tmp_path / "configmaps.yaml").read_text())
    assert "dns:///anyloop-policy.home.svc:50051" in {each["data"].get("ANYLOOP_POLICY_TARGET") for each in config}


def test_values_that_the_chart_refuses_leave_everything_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "values.yaml").write_text("lab: {enabled: false}\n")
    assert main(["--values", str(tmp_path / "values.yaml"), "--output", str(tmp_path / "base")]) == 2
    assert "set lab.enabled=true" in capsys.readouterr().err
    assert not (tmp_path / "base").exists()
