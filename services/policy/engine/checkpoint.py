"""Reads a checkpoint and proves that it is what it says, before anything serves it."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from anyloop.models.digest import weights_digest
from anyloop.sequence import LayoutError, SequenceLayout
from services.hosts.interface import HostError

MANIFEST_FILE = "manifest.json"


@dataclass(eq=False)
class WeightSet:
    """One resident version: its own module, so that two versions can answer in turn."""

    version: str
    model: PreTrainedModel
    digest: str  # SHA-256 over the tensors in memory, under the names of the safetensors files
    load_seconds: float = 0.0
    users: int = 0  # requests bound to it; the engine counts
    idle_since: float = 0.0  # monotonic seconds; when the last of them ended
    retiring: bool = False  # dropped when the last user ends

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: tensor.shape for name, tensor in self.model.state_dict().items()}


def load_checkpoint(
    path: Path,
    version: str,
    digest: str = "",
    *,
    like: WeightSet | None = None,
    layout: SequenceLayout | None = None,
) -> WeightSet:
    """Reads the weights at `path` as float32, beside whatever serves.

    Every file that the manifest names is hashed again; the digest of the loaded tensors must equal `digest` and the
    manifest's; tensors must have the shapes of `like`; the token layout must be `layout`. Raises HostError
    FAILED_PRECONDITION with the reason otherwise.
    """
    began = time.monotonic()
    if not path.is_dir():
        raise HostError("FAILED_PRECONDITION", f"{version}: there is no checkpoint folder at {path}")
    promised = _verify_files(path, version)
    if layout is not None:
        _verify_layout(path, version, layout)
    model = _read_model(path, version)
    names = _tensor_names(path, version)
    state = model.state_dict()
    missing = sorted(set(names) - set(state))
    if missing:
        raise _refused(version, f"the model has no tensor {missing[0]} ({len(missing)} such)")
    not_finite = [name for name in names if not bool(torch.isfinite(state[name]).all())]
    if not_finite:
        raise _refused(version, f"{not_finite[0]} holds NaN or infinity")
    weights = WeightSet(version, model, weights_digest({name: state[name] for name in names}))
    for source, expected in (("the announcement", digest), ("the manifest", promised)):
        if expected and expected != weights.digest:
            raise _refused(version, f"the loaded weights have digest {weights.digest}, {source} says {expected}")
    if like is not None:
        _verify_shapes(weights, like)
    weights.load_seconds = time.monotonic() - began
    return weights


def _refused(version: str, reason: str) -> HostError:
    return HostError("FAILED_PRECONDITION", f"checkpoint {version} was refused: {reason}")


def _verify_files(path: Path, version: str) -> str:
    """Hashes what the manifest lists; returns the weights digest it promises ("" without a manifest)."""
    manifest_path = path / MANIFEST_FILE
    if not manifest_path.exists():
        return ""
    try:
        manifest = json.loads(manifest_path.read_bytes())
        files: dict[str, dict[str, Any]] = manifest["files"]
        for name, entry in files.items():
            file = (path / name).resolve()
            if not file.is_relative_to(path.resolve()):
                raise _refused(version, f"its manifest names {name}, outside of its folder")
            if not file.is_file():
                raise _refused(version, f"{name} is missing")
            if file.stat().st_size != int(entry["bytes"]):
                raise _refused(version, f"{name} has {file.stat().st_size} bytes, the manifest says {entry['bytes']}")
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise _refused(version, f"{name} has SHA-256 {found}, the manifest says {entry['sha256']}")
        return str(manifest.get("weights_digest", ""))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(version, f"its manifest cannot be read ({error!r})") from error


def _verify_layout(path: Path, version: str, layout: SequenceLayout) -> None:
    try:
        found = SequenceLayout.load(path)
    except LayoutError as error:
        raise _refused(version, str(error)) from error
    if found != layout:
        raise _refused(version, "its token layout (sequence.json) is not the one that this replica speaks")


def _read_model(path: Path, version: str) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise _refused(version, f"{type(error).__name__}: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise _refused(
                version, f"{kind.replace('_', ' ')}: {sorted(info[kind], key=str)[0]} ({len(info[kind])} such)"
            )
    model.eval().requires_grad_(False)
    return model


def _tensor_names(path: Path, version: str) -> list[str]:
    names: list[str] = []
    try:
        for file in sorted(path.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                names.extend(tensors.keys())
    except (OSError, SafetensorError) as error:
        raise _refused(version, str(error)) from error
    return names


def _verify_shapes(weights: WeightSet, like: WeightSet) -> None:
    mine, theirs = weights.shapes, like.shapes
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            found, expected = mine.get(name), theirs.get(name)
            raise _refused(
                weights.version,
                f"{name} has shape {tuple(found) if found else None}, "
                f"the resident {like.version} has {tuple(expected) if expected else None}",
            )
