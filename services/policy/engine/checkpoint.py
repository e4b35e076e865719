"""Reads a checkpoint and proves that it is what it says, before anything serves it."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from anyloop.models.digest import weights_digest
from anyloop.sequence import LayoutError, SequenceLayout
from services.hosts.interface import HostError
from services.policy.engine.forward import Forward, ForwardOptions, NoForward, build_forward, out_of_memory
from services.policy.engine.forward.fused import FusedForward
from services.policy.engine.tensor_files import TensorFileError, read_tensors

MANIFEST_FILE = "manifest.json"
# Lines of config.json that may differ between two checkpoints of one architecture.
_NO_ARCHITECTURE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


_uids = itertools.count()


@dataclass(eq=False)
class WeightSet:
    """One resident version: a forward of its own, so that two versions can answer in turn."""

    version: str
    model: PreTrainedModel
    digest: str  # SHA-256 over the tensors in memory, under the names of the safetensors files
    load_seconds: float = 0.0
    users: int = 0  # requests bound to it; the engine counts
    idle_since: float = 0.0  # monotonic seconds; when the last of them ended
    retiring: bool = False  # dropped when the last user ends
    architecture: dict[str, Any] = field(default_factory=dict)  # of config.json
    options: ForwardOptions = field(default_factory=ForwardOptions)
    kind: str = ""  # of forward that it must run by; empty: the fastest that works
    forward: Forward = None  # type: ignore[assignment]  # the one that is chosen, unless one is given
    uid: int = field(init=False)  # no other set in this process has it: a version loaded again is another set

    def __post_init__(self) -> None:
        """Raises NoForward."""
        self.uid = next(_uids)
        if self.forward is None:
            self.forward = build_forward(self.model, self.options, self.kind)

    def drop_module(self) -> None:
        """Gives the module's tensors back where the forward holds copies; shapes and buffers stay."""
        if self.forward.kind != "fused":
            return
        shapes: dict[int, torch.nn.Parameter] = {}  # tied parameters stay tied
        for module in self.model.modules():
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if id(parameter) not in shapes:
                    shapes[id(parameter)] = torch.nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
                setattr(module, name, shapes[id(parameter)])

    def sets_like_it(self, architecture: dict[str, Any], options: ForwardOptions) -> bool:
        return bool(self.architecture) and (self.architecture, self.options) == (architecture, options)

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
    options: ForwardOptions = ForwardOptions(),  # noqa: B008 - frozen
) -> WeightSet:
    """Reads the weights at `path` as float32, beside whatever serves, and makes them ready to run.

    Every file that the manifest names is hashed again; the digest of the loaded tensors must equal `digest` and the
    manifest's; tensors must have the shapes of `like`; the token layout must be `layout`. Raises HostError
    FAILED_PRECONDITION with the reason otherwise, UNAVAILABLE when the disk does not answer, and RESOURCE_EXHAUSTED
    when there is no memory for it.
    """
    began = time.monotonic()
    try:
        weights = _load(path, version, digest, like, layout, options)
    except TensorFileError as error:
        raise _refused(version, str(error)) from error
    except OSError as error:
        raise HostError("UNAVAILABLE", f"checkpoint {version} cannot be read now: {error}") from error
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise HostError("RESOURCE_EXHAUSTED", f"no memory for checkpoint {version}: {error}") from error
    weights.load_seconds = time.monotonic() - began
    return weights


def _load(
    path: Path,
    version: str,
    digest: str,
    like: WeightSet | None,
    layout: SequenceLayout | None,
    options: ForwardOptions,
) -> WeightSet:
    if not path.is_dir():
        raise HostError("FAILED_PRECONDITION", f"{version}: there is no checkpoint folder at {path}")
    promised, sha256 = _verify_files(path, version)
    if layout is not None:
        _verify_layout(path, version, layout)
    architecture = _architecture(path, version)
    tensors = read_tensors(path, sha256)
    not_finite = [name for name in sorted(tensors) if not bool(torch.isfinite(tensors[name]).all())]
    if not_finite:
        raise _refused(version, f"{not_finite[0]} holds NaN or infinity")
    found = weights_digest(tensors)
    for source, expected in (("the announcement", digest), ("the manifest", promised)):
        if expected and expected != found:
            raise _refused(version, f"the loaded weights have digest {found}, {source} says {expected}")
    if like is not None and isinstance(like.forward, FusedForward) and like.sets_like_it(architecture, options):
        # Its forward was held against its module; other numbers need neither a module nor a second proof.
        forward = like.forward.with_tensors(_same_shapes(like.model, tensors, version))
        return WeightSet(
            version, like.model, found, architecture=architecture, options=options, kind=forward.kind, forward=forward
        )
    model = _new_model(path, version, tensors)
    kind = like.forward.kind if like is not None else ""
    try:
        weights = WeightSet(version, model, found, architecture=architecture, options=options, kind=kind)
    except NoForward as error:
        raise _refused(version, str(error)) from error
    if like is not None:
        _verify_shapes(weights, like)
    weights.drop_module()
    return weights


def _refused(version: str, reason: str) -> HostError:
    return HostError("FAILED_PRECONDITION", f"checkpoint {version} was refused: {reason}")


def _verify_files(path: Path, version: str) -> tuple[str, dict[str, str]]:
    """Hashes what the manifest lists, but for the tensor files, which are hashed when they are read.

    Returns the weights digest that it promises, and the SHA-256 of each file ("" and none without a manifest).
    """
    manifest_path = path / MANIFEST_FILE
    if not manifest_path.exists():
        return "", {}
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
            if file.suffix == ".safetensors":
                continue
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise _refused(version, f"{name} has SHA-256 {found}, the manifest says {entry['sha256']}")
        return str(manifest.get("weights_digest", "")), {name: entry["sha256"] for name, entry in files.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _refused(version, f"its manifest cannot be read ({error!r})") from error


def _verify_layout(path: Path, version: str, layout: SequenceLayout) -> None:
    try:
        found = SequenceLayout.load(path)
    except LayoutError as error:
        raise _refused(version, str(error)) from error
    if found != layout:
        raise _refused(version, "its token layout (sequence.json) is not the one that this replica speaks")


def _architecture(path: Path, version: str) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
        return {name: value for name, value in config.items() if name not in _NO_ARCHITECTURE}
    except (ValueError, AttributeError) as error:
        raise _refused(version, f"its config.json cannot be read ({error!r})") from error


def _same_shapes(model: PreTrainedModel, tensors: Mapping[str, torch.Tensor], version: str) -> dict[str, torch.Tensor]:
    """The tensors under every name that they have in `model`: a tied one stands in the file under one of them."""
    held = model.state_dict(keep_vars=True)
    missing = sorted(tensors.keys() - held.keys())
    if missing:
        raise _refused(version, f"the model has no tensor {missing[0]} ({len(missing)} such)")
    found: dict[int, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.shape != held[name].shape:
            raise _wrong_shape(version, name, tensor.shape, "the resident one", held[name].shape)
        found[id(held[name])] = tensor.to(dtype=held[name].dtype)
    absent = sorted(name for name, old in held.items() if id(old) not in found)
    if absent:
        raise _refused(version, f"missing keys: {absent[0]} ({len(absent)} such)")
    return {name: found[id(old)] for name, old in held.items()}


def _new_model(path: Path, version: str, tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):  # only to learn which class it is
            # The dtype is named, or that of config.json would be torch's default for every thread meanwhile.
            family = type(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
        model, info = family.from_pretrained(
            None,
            config=config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            attn_implementation="sdpa" if getattr(family, "_supports_sdpa", False) else "eager",
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        if out_of_memory(error):
            raise
        raise _refused(version, f"{type(error).__name__}: {error}") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise _refused(
                version, f"{kind.replace('_', ' ')}: {sorted(info[kind], key=str)[0]} ({len(info[kind])} such)"
            )
    model.eval().requires_grad_(False)
    return model


def _verify_shapes(weights: WeightSet, like: WeightSet) -> None:
    mine, theirs = weights.shapes, like.shapes
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise _wrong_shape(weights.version, name, mine.get(name), f"the resident {like.version}", theirs.get(name))


def _wrong_shape(
    version: str, name: str, found: torch.Size | None, holder: str, expected: torch.Size | None
) -> HostError:
    return _refused(
        version,
        f"{name} has shape {tuple(found) if found else None}, {holder} has {tuple(expected) if expected else None}",
    )
