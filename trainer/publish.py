"""Writes trained weights into the registry as a whole checkpoint, and finds what a killed process has published."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from anyloop.models.digest import weights_digest
from anyloop.registry import Manifest, Registry
from trainer.answer_model import stored_names

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


def publish_weights(
    registry: Registry,
    lineage: str,
    parent: Path,
    tensors: Mapping[str, Tensor],
    *,
    parent_version: str,
    offsets: Mapping[str, Mapping[str, int]] | None = None,
    metrics: Mapping[str, Any] | None = None,
    version: str | None = None,
) -> Manifest:
    """A new version of `lineage`: the parent's files with new weights, under the tensor names of the parent's file.

    `version` defaults to the lineage's next number.
    """
    names = stored_names(parent)
    weights = {name: tensors[name].float().contiguous().clone() for name in names}

    def write(folder: Path) -> None:
        for path in sorted(parent.iterdir()):
            if path.is_file() and path.name not in (WEIGHTS, MANIFEST):
                shutil.copyfile(path, folder / path.name)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return registry.publish(
        lineage,
        write,
        parent=parent_version,
        weights_digest=weights_digest(weights),
        offsets=offsets or {},
        metrics=metrics or {},
        version=version,
    )


def published_by_round(registry: Registry, lineage: str, round_key: str) -> Manifest | None:
    """What a round has published of `lineage`, so that a resumed round does not publish twice."""
    for version in reversed(registry.versions(lineage)):
        manifest = registry.manifest(version)
        if manifest.metrics.get("round_key") == round_key:
            return manifest
    return None


def used_feedback(registry: Registry) -> set[str]:
    """Every feedback id that a published checkpoint has learned from."""
    return {
        name
        for lineage in ("policy", "critique")
        for version in registry.versions(lineage)
        for name in registry.manifest(version).metrics.get("feedback_ids", ())
    }
