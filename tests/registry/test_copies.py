"""Versions copied between registries and adopted into the live lineage."""

from pathlib import Path

import pytest

from anyloop.registry import CheckpointError, Registry
from anyloop.registry.copies import adopt, ancestry, copy_version
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


@pytest.fixture
def registry(tmp_path: Path, model: Path) -> Registry:
    """policy-000000 → policy-000001 (learned a, b); lab-000001 (a, c) → lab-000002 (d), both from policy-000000."""
    registry = Registry(tmp_path / "registry")
    registry.import_base("policy", model)
    for lineage, parent, ids in (
        ("policy", "policy-000000", ["a", "b"]),
        ("lab", "policy-000000", ["a", "c"]),
        ("lab", "lab-000001", ["d"]),
    ):
        metrics = {"feedback_ids": ids, "round": 1, "round_key": f"{lineage}{ids}", "algorithm": "dpo"}
        copy_version(registry, "policy-000000", registry, lineage=lineage, parent=parent, metrics=metrics)
    registry.record_gate("lab-000002", {"outcome": "promoted", "reason": "better"})
    return registry


def test_a_copy_has_the_same_bytes_and_a_manifest_of_its_own(registry: Registry, tmp_path: Path) -> None:
    other = Registry(tmp_path / "other")
    manifest = copy_version(
        registry, "lab-000002", other, lineage="policy", parent="", name="lab-000002", metrics={"why": "test"}
    )
    assert other.verify("lab-000002") == manifest
    assert (manifest.lineage, manifest.parent, manifest.metrics) == ("policy", "", {"why": "test"})
    assert manifest.files == registry.manifest("lab-000002").files
    registry.delete("lab-000002")
    assert other.verify("lab-000002") == manifest


def test_a_corrupt_version_is_not_copied(registry: Registry, tmp_path: Path) -> None:
    weights = registry.path("lab-000001") / "model.safetensors"
    data = bytearray(weights.read_bytes())
    weights.unlink()
    data[-1] ^= 1
    weights.write_bytes(data)
    other = Registry(tmp_path / "other")
    with pytest.raises(CheckpointError, match="SHA-256"):
        copy_version(registry, "lab-000001", other, lineage="lab", parent="")
    assert other.lineages() == []


def test_an_adopted_version_is_the_next_of_the_lineage(registry: Registry) -> None:
    adopted = adopt(registry, "lab-000002", "policy")
    assert (adopted.version, adopted.parent, adopted.base) == ("policy-000002", "lab-000002", "policy-000000")
    assert adopted.weights_digest == registry.manifest("lab-000002").weights_digest
    assert adopted.gate == {"outcome": "promoted", "reason": "better"}
    assert "round_key" not in adopted.metrics
    assert registry.verify(adopted.version) == adopted


def test_feedback_of_an_adopted_version_and_its_ancestors_counts_once_in_the_lineage(registry: Registry) -> None:
    adopted = adopt(registry, "lab-000002", "policy")
    assert adopted.metrics["feedback_ids"] == ["c", "d"]
    used = {"a": "policy-000001", "b": "policy-000001", "c": "policy-000002", "d": "policy-000002"}
    assert registry.used_feedback("policy") == used


def test_adopting_twice_is_adopting_once(registry: Registry) -> None:
    assert adopt(registry, "lab-000002", "policy") == adopt(registry, "lab-000002", "policy")
    assert registry.versions("policy") == ["policy-000000", "policy-000001", "policy-000002"]


def test_feedback_that_a_trainer_uses_meanwhile_stays_with_its_version(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, raced = registry.publish, []

    def published_before(*arguments: object, **options: object) -> object:
        if not raced:
            raced.append(True)
            metrics = {"feedback_ids": ["c"]}
            copy_version(registry, "policy-000000", registry, lineage="policy", parent="policy-000001", metrics=metrics)
        return publish(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "publish", published_before)
    adopted = adopt(registry, "lab-000002", "policy")
    assert adopted.metrics["feedback_ids"] == ["d"]
    assert registry.used_feedback("policy")["c"] == "policy-000002"


def test_ancestry_ends_where_the_registry_does(registry: Registry) -> None:
    assert [one.version for one in ancestry(registry, "lab-000002")] == ["lab-000002", "lab-000001", "policy-000000"]
    registry.delete("lab-000001")
    assert [one.version for one in ancestry(registry, "lab-000002")] == ["lab-000002"]
    with pytest.raises(CheckpointError):
        ancestry(registry, "lab-000001")


def test_lineages_are_those_that_have_versions(registry: Registry) -> None:
    assert registry.lineages() == ["lab", "policy"]
