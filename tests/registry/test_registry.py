import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyloop.models.digest import weights_digest
from anyloop.registry import CheckpointError, Manifest, Registry

ROOT = Path(__file__).parent.parent.parent


def write(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")


def publish(registry: Registry, lineage: str = "policy", **options) -> Manifest:
    return registry.publish(lineage, write, parent=options.pop("parent", ""), weights_digest="d", **options)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "registry")


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "codecs" / "image").mkdir(parents=True)
    (folder / "codecs" / "image" / "config.json").write_text("{}")
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    (folder / "README.md").write_text("card")
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).half()}, folder / "model.safetensors")
    return folder


def names(registry: Registry, version: str) -> set[str]:
    return {path.name for path in registry.path(version).iterdir()}


class TestPublish:
    def test_a_version_holds_its_files_and_a_manifest_of_them(self, registry: Registry) -> None:
        before = time.time() * 1000 - 1
        manifest = registry.publish(
            "policy",
            write,
            parent="",
            weights_digest="abc",
            offsets={"trainer/anyloop.feedback.v1": {"0": 12}},
            metrics={"loss": 0.5},
        )
        assert manifest.version == "policy-000001"
        assert manifest.files == {
            "config.json": {"sha256": hashlib.sha256(b"{}").hexdigest(), "bytes": 2},
            "model.safetensors": {"sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7},
        }
        assert (manifest.lineage, manifest.parent, manifest.weights_digest) == ("policy", "", "abc")
        assert manifest.offsets == {"trainer/anyloop.feedback.v1": {"0": 12}}
        assert (manifest.metrics, manifest.gate) == ({"loss": 0.5}, None)
        assert before <= manifest.created_unix_ms <= time.time() * 1000
        assert names(registry, "policy-000001") == {"config.json", "model.safetensors", "manifest.json"}
        assert registry.manifest("policy-000001") == registry.verify("policy-000001") == manifest

    def test_versions_count_up_per_lineage(self, registry: Registry) -> None:
        for lineage in ("policy", "critique", "policy"):
            publish(registry, lineage)
        assert registry.versions("policy") == ["policy-000001", "policy-000002"]
        assert registry.versions("critique") == ["critique-000001"]

    def test_a_name_is_never_used_twice(self, registry: Registry) -> None:
        publish(registry)
        registry.delete("policy-000001")
        assert publish(registry).version == "policy-000002"
        with pytest.raises(CheckpointError, match="existed once"):
            publish(registry, version="policy-000001")
        with pytest.raises(CheckpointError, match="exists already"):
            publish(registry, version="policy-000002")

    def test_a_child_descends_from_the_base_of_its_parent(self, registry: Registry, model_dir: Path) -> None:
        registry.import_base("policy", model_dir)
        first = publish(registry, parent="policy-000000")
        second = publish(registry, parent=first.version)
        assert (second.parent, second.base) == ("policy-000001", "policy-000000")

    def test_a_writer_that_fails_leaves_nothing(self, registry: Registry, tmp_path: Path) -> None:
        def failing(folder: Path) -> None:
            write(folder)
            raise OSError(errno.ENOSPC, "no space")

        with pytest.raises(OSError, match="no space"):
            registry.publish("policy", failing, parent="", weights_digest="d")
        assert registry.versions("policy") == []
        assert [path.name for path in (tmp_path / "registry").iterdir()] == [".retired"]

    @pytest.mark.parametrize(
        ("name", "says"),
        [("optimizer.pt", "never pickles"), ("sub/pytorch_model.bin", "never pickles")],
    )
    def test_pickles_are_refused(self, registry: Registry, name: str, says: str) -> None:
        def pickling(folder: Path) -> None:
            write(folder)
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"\x80\x04")

        with pytest.raises(CheckpointError, match=says):
            registry.publish("policy", pickling, parent="", weights_digest="d")

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
    def test_a_folder_without_config_or_weights_is_refused(self, registry: Registry, missing: str) -> None:
        def incomplete(folder: Path) -> None:
            write(folder)
            (folder / missing).unlink()

        with pytest.raises(CheckpointError, match=missing.split(".")[-1]):
            registry.publish("policy", incomplete, parent="", weights_digest="d")

    def test_a_link_out_of_the_folder_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("s")

        def linking(folder: Path) -> None:
            write(folder)
            (folder / "tokenizer.json").symlink_to(tmp_path / "secret")

        with pytest.raises(CheckpointError, match=r"tokenizer\.json is not a regular file"):
            registry.publish("policy", linking, parent="", weights_digest="d")

    def test_publishers_at_the_same_time_get_different_versions(self, registry: Registry) -> None:
        found: list[str] = []
        threads = [threading.Thread(target=lambda: found.append(publish(registry).version)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [f"policy-00000{number}" for number in range(1, 9)]
        for version in found:
            registry.verify(version)

    def test_a_publisher_killed_at_any_moment_leaves_whole_versions_only(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        program = f"""
from pathlib import Path
from anyloop.registry import Registry
def write(folder):
    (folder / "config.json").write_text("{{}}")
    for part in range(8):
        (folder / f"model-{{part}}.safetensors").write_bytes(bytes(50000))
registry = Registry(Path({str(tmp_path / "registry")!r}))
while True:
    print(registry.publish("policy", write, parent="", weights_digest="d").version, flush=True)
"""
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert process.stdout is not None
        published = [process.stdout.readline().strip() for _ in range(5)]
        time.sleep(0.013)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        versions = registry.versions("policy")
        assert set(published) <= set(versions)
        for version in versions:
            registry.verify(version)
        assert publish(registry).version not in versions


class TestImportBase:
    def test_takes_the_checkpoint_and_leaves_codecs_and_card(self, registry: Registry, model_dir: Path) -> None:
        manifest = registry.import_base("policy", model_dir)
        assert (manifest.version, manifest.parent, manifest.base) == ("policy-000000", "", "policy-000000")
        assert set(manifest.files) == {"config.json", "tokenizer.json", "model.safetensors"}
        expected = weights_digest({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)})
        assert manifest.weights_digest == expected  # over fp32, whatever the file holds
        assert publish(registry).version == "policy-000001"

    def test_is_idempotent_also_for_several_at_once(self, registry: Registry, model_dir: Path) -> None:
        found: list[Manifest] = []
        threads = [
            threading.Thread(target=lambda: found.append(registry.import_base("policy", model_dir))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        assert all(manifest == found[0] for manifest in found)

    def test_another_model_under_the_same_lineage_is_refused(self, registry: Registry, model_dir: Path) -> None:
        registry.import_base("policy", model_dir)
        (model_dir / "tokenizer.json").write_text('{"other": 1}')
        with pytest.raises(CheckpointError, match=r"tokenizer\.json differs"):
            registry.import_base("policy", model_dir)

    def test_a_folder_that_is_no_model_is_refused(self, registry: Registry, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no config\.json"):
            registry.import_base("policy", tmp_path)

    def test_truncated_weights_are_refused(self, registry: Registry, model_dir: Path) -> None:
        weights = model_dir / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-3])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
            registry.import_base("policy", model_dir)


class TestVerify:
    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda f: (f / "model.safetensors").write_bytes(b"weight"), "has 6 bytes, not 7"),
            (lambda f: (f / "model.safetensors").write_bytes(b"wEights"), "SHA-256"),
            (lambda f: (f / "config.json").unlink(), "config.json is missing"),
            (lambda f: (f / "extra.bin").write_bytes(b"x"), "extra.bin is not in the manifest"),
            (lambda f: (f / "manifest.json").write_text("{"), "not JSON"),
            (lambda f: (f / "manifest.json").write_text("[]"), "not a JSON object"),
            (lambda f: (f / "manifest.json").write_text('{"version": "v"}'), "lacks lineage"),
            (lambda f: (f / "manifest.json").write_bytes(b"\xff"), "cannot be read"),
        ],
        ids=["truncated", "changed", "missing", "extra", "no-json", "no-object", "incomplete", "no-text"],
    )
    def test_damage_is_found_and_named(self, registry: Registry, damage, says: str) -> None:
        publish(registry)
        damage(registry.path("policy-000001"))
        with pytest.raises(CheckpointError, match=says) as caught:
            registry.verify("policy-000001")
        assert "policy-000001" in str(caught.value)

    def test_a_manifest_that_names_files_elsewhere_is_refused(self, registry: Registry) -> None:
        publish(registry)
        path = registry.path("policy-000001") / "manifest.json"
        raw = json.loads(path.read_text())
        raw["files"]["../../etc/passwd"] = {"sha256": "0", "bytes": 1}
        path.write_text(json.dumps(raw))
        with pytest.raises(CheckpointError, match="leaves the checkpoint folder"):
            registry.verify("policy-000001")

    def test_a_folder_under_another_name_is_refused(self, registry: Registry) -> None:
        publish(registry)
        folder = registry.path("policy-000001")
        folder.rename(folder.with_name("policy-000009"))
        with pytest.raises(CheckpointError, match="is that of 'policy-000001'"):
            registry.verify("policy-000009")

    @pytest.mark.parametrize("version", ["policy-000404", "../registry", "", ".retired", "a/b", "x" * 200])
    def test_no_such_version(self, registry: Registry, version: str) -> None:
        with pytest.raises(CheckpointError, match="no version"):
            registry.verify(version)

    def test_a_manifest_of_a_later_release_is_read(self, registry: Registry) -> None:
        manifest = publish(registry)
        raw = json.loads(manifest.to_json()) | {"signature": "later"}
        assert Manifest.from_json(json.dumps(raw)) == manifest


def test_the_gates_decision_is_recorded_and_the_checkpoint_stays_valid(registry: Registry) -> None:
    publish(registry)
    registry.record_gate("policy-000001", {"outcome": "promoted", "reason": "better"})
    assert registry.verify("policy-000001").gate == {"outcome": "promoted", "reason": "better"}


def test_pruning_keeps_the_newest_the_protected_and_the_base(registry: Registry, model_dir: Path) -> None:
    registry.import_base("policy", model_dir)
    for _ in range(5):
        publish(registry)
    publish(registry, "critique")
    assert registry.prune("policy", 2, {"policy-000002"}) == ["policy-000001", "policy-000003"]
    assert registry.versions("policy") == ["policy-000000", "policy-000002", "policy-000004", "policy-000005"]
    assert registry.versions("critique") == ["critique-000001"]
    with pytest.raises(CheckpointError):
        registry.path("policy-000001")


def test_pruning_removes_what_dead_publishers_left_and_spares_running_ones(registry: Registry, tmp_path: Path) -> None:
    stale, running = tmp_path / "registry" / ".tmp-stale", tmp_path / "registry" / ".tmp-running"
    for folder in (stale, running):
        folder.mkdir()
    os.utime(stale, (0, 0))
    registry.prune("policy", 1, set())
    assert not stale.exists()
    assert running.exists()
