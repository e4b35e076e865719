"""A checkpoint is served only when it is what its manifest and its announcement say."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyloop.models.digest import weights_digest
from anyloop.sequence import SequenceLayout
from services.hosts.interface import HostError
from services.policy.engine import load_checkpoint
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def checkpoint(base: Path, tmp_path: Path) -> Path:
    path = Path(shutil.copytree(base, tmp_path / "checkpoint", ignore=shutil.ignore_patterns("codecs")))
    _seal(path)
    return path


def _digest(path: Path) -> str:
    return weights_digest(load_file(path / "model.safetensors"))


def _seal(path: Path) -> None:
    """Writes a manifest that fits the files."""
    files = {
        file.name: {"sha256": hashlib.sha256(file.read_bytes()).hexdigest(), "bytes": file.stat().st_size}
        for file in sorted(path.iterdir())
        if file.name != "manifest.json"
    }
    manifest = {"version": "v1", "files": files, "weights_digest": _digest(path)}
    (path / "manifest.json").write_text(json.dumps(manifest))


def _refusal(path: Path, digest: str = "", **options: object) -> str:
    with pytest.raises(HostError) as refused:
        load_checkpoint(path, "v1", digest, **options)  # type: ignore[arg-type]
    assert refused.value.code == "FAILED_PRECONDITION"
    assert not refused.value.retriable
    return refused.value.message


def test_the_digest_is_of_the_tensors_in_memory_under_the_names_of_the_file(checkpoint: Path) -> None:
    weights = load_checkpoint(checkpoint, "v1", _digest(checkpoint), layout=SequenceLayout.load(checkpoint))
    assert weights.digest == _digest(checkpoint)
    assert weights.load_seconds > 0


def test_a_truncated_file_is_refused_by_name(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors has" in _refusal(checkpoint)


def test_a_flipped_byte_is_refused_by_hash(checkpoint: Path) -> None:
    data = bytearray((checkpoint / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (checkpoint / "model.safetensors").write_bytes(data)
    assert "model.safetensors has SHA-256" in _refusal(checkpoint)


def test_a_missing_file_is_refused(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    assert "config.json is missing" in _refusal(checkpoint)


def test_a_truncated_file_without_a_manifest_is_refused_too(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "refused" in _refusal(checkpoint)


def test_another_digest_than_announced_is_refused(checkpoint: Path) -> None:
    assert "the announcement says 00" in _refusal(checkpoint, "00")


def test_an_unreadable_manifest_is_refused(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").write_text("{")
    assert "manifest cannot be read" in _refusal(checkpoint)


def test_a_manifest_that_points_outside_is_refused(checkpoint: Path) -> None:
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"sha256": "00", "bytes": 1}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert "outside of its folder" in _refusal(checkpoint)


def test_another_shape_than_the_resident_weights_is_refused(base: Path, tmp_path: Path) -> None:
    wide = build_random_omni(tmp_path / "wide", hidden=48)
    resident = load_checkpoint(base, "v0")
    assert "has shape" in _refusal(wide, like=resident)


def test_another_token_layout_is_refused(checkpoint: Path) -> None:
    layout = json.loads((checkpoint / "sequence.json").read_text())
    layout["codes"]["image"]["length"] = 4
    (checkpoint / "sequence.json").write_text(json.dumps(layout))
    (checkpoint / "manifest.json").unlink()
    expected = SequenceLayout.build(320, {})
    assert "token layout" in _refusal(checkpoint, layout=expected)


def test_tensors_that_do_not_fit_the_config_are_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    _seal(checkpoint)
    assert "missing keys: model.norm.weight" in _refusal(checkpoint)


def test_weights_that_are_not_numbers_are_refused(checkpoint: Path) -> None:
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["model.norm.weight"][3] = torch.nan
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    _seal(checkpoint)
    assert "model.norm.weight holds NaN" in _refusal(checkpoint)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "no checkpoint folder" in _refusal(tmp_path / "nowhere")
