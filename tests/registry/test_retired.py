"""What a registry remembers of deleted versions, and who may publish."""

import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from anyloop.registry import CheckpointError, Registry


def write(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def publish(registry: Registry, used: list[str], lineage: str = "policy", **more: Any) -> str:
    metrics = {"feedback_ids": used}
    return registry.publish(lineage, write, parent="", weights_digest="d", metrics=metrics, **more).version


def test_used_feedback_is_known_per_lineage_and_after_the_version_is_gone(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    first, second = publish(registry, ["a", "b"]), publish(registry, ["c"])
    critique = publish(registry, ["a"], lineage="critique")
    assert registry.used_feedback("policy") == {"a": first, "b": first, "c": second}
    registry.delete(first)
    for reader in (registry, Registry(tmp_path)):
        assert reader.used_feedback("policy") == {"a": first, "b": first, "c": second}
        assert reader.used_feedback("critique") == {"a": critique}


def test_a_version_published_meanwhile_by_another_is_seen(tmp_path: Path) -> None:
    registry, other = Registry(tmp_path), Registry(tmp_path)
    assert registry.used_feedback("policy") == {}
    version = publish(other, ["a"])
    assert registry.used_feedback("policy") == {"a": version}


def test_what_was_published_long_ago_is_forgotten_but_its_name_stays_used(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    version = publish(registry, ["a"])
    registry.delete(version)
    registry.forget(published_before=time.time() - 60)
    assert registry.used_feedback("policy") == {"a": version}
    registry.forget(published_before=time.time() + 60)
    assert registry.used_feedback("policy") == {}
    assert Registry(tmp_path).used_feedback("policy") == {}
    with pytest.raises(CheckpointError, match="existed once"):
        publish(registry, ["a"], version=version)


def test_a_damaged_version_can_be_deleted_and_hides_no_other(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    damaged, whole = publish(registry, ["a"]), publish(registry, ["b"])
    registry.path(damaged).joinpath("manifest.json").write_text("{")
    assert Registry(tmp_path).used_feedback("policy") == {"b": whole}
    with pytest.raises(CheckpointError):
        registry.manifest(damaged)
    registry.delete(damaged)
    assert registry.versions("policy") == [whole]


def test_a_deletion_cut_short_is_completed_by_the_next_pruning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path)
    first, second = publish(registry, ["a"]), publish(registry, ["b"])
    with monkeypatch.context() as cut:
        cut.setattr(Registry, "_remove", lambda self, folder: None)
        registry.delete(first)
    assert registry.versions("policy") == [second]
    assert (tmp_path / first).is_dir()
    registry.prune("policy", 5, set())
    assert not (tmp_path / first).exists()
    assert registry.used_feedback("policy") == {"a": first, "b": second}


def test_a_failed_check_leaves_nothing_and_the_steps_are_told_in_order(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    steps: list[str] = []

    def check() -> None:
        steps.append("checked")
        if len(steps) < 5:
            raise RuntimeError("used elsewhere")

    with pytest.raises(RuntimeError, match="used elsewhere"):
        publish(registry, [], check=check, progress=steps.append)
    assert registry.versions("policy") == []
    assert [path.name for path in tmp_path.iterdir()] == [".retired"]
    publish(registry, [], check=check, progress=steps.append)
    assert steps == ["written", "synced", "checked", "written", "synced", "checked", "renamed"]


def _publish_if_unused(root: Path, name: str, start: Any) -> None:
    registry = Registry(root)

    def check() -> None:
        used = registry.used_feedback("policy")
        time.sleep(0.01)  # long enough for the others, were they not kept out
        if name in used:
            raise SystemExit(7)

    start.wait()
    publish(registry, [name], check=check)


def test_of_many_processes_with_the_same_feedback_one_publishes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    start = context.Event()
    crowd = [context.Process(target=_publish_if_unused, args=(tmp_path, "a", start)) for _ in range(6)]
    for process in crowd:
        process.start()
    start.set()
    for process in crowd:
        process.join(60)
    assert sorted(process.exitcode or 0 for process in crowd) == [0, 7, 7, 7, 7, 7]
    assert len(Registry(tmp_path).versions("policy")) == 1
