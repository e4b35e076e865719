"""Writes trained weights into the registry as a whole checkpoint, and finds what a killed process has published."""

import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
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
    check: Callable[[], None] = lambda: None,
    progress: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """A new version of `lineage`: the parent's files with new weights, under the tensor names of the parent's file.

    `version` defaults to the lineage's next number; `check` and `progress` are those of `Registry.publish`. Raises
    OSError where the disk is full.
    """
    weights = stored_weights(parent, tensors)
    return registry.publish(
        lineage,
        lambda folder: write_checkpoint(folder, parent, weights),
        parent=parent_version,
        weights_digest=weights_digest(weights),
        offsets=offsets or {},
        metrics=metrics or {},
        version=version,
        check=check,
        progress=progress,
    )


def stored_weights(parent: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in fp32 of those `tensors` that the parent's file holds, under its names."""
    return {name: tensors[name].float().contiguous().clone() for name in stored_names(parent)}


def write_checkpoint(folder: Path, parent: Path, weights: Mapping[str, Tensor]) -> None:
    """The parent's files (not its folders, nor its manifest) in `folder`, with `weights`. Raises OSError."""
    for path in sorted(parent.iterdir()):
        if path.is_file() and path.name not in (WEIGHTS, MANIFEST):
            shutil.copyfile(path, folder / path.name)
    try:
        save_file(dict(weights), folder / WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # hides the number that says whether waiting helps
        number = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(number[1]), str(error)) if number else error) from error


def published_by_round(registry: Registry, lineage: str, round_key: str) -> Manifest | None:
    """What a round has published of `lineage`, so that a resumed round does not publish twice."""
    for version in reversed(registry.versions(lineage)):
        manifest = registry.manifest(version)
        if manifest.metrics.get("round_key") == round_key:
            return manifest
    return None


class UsedElsewhere(Exception):
    """Another trainer's checkpoint of the lineage has learned from some of the same feedback."""

    def __init__(self, lineage: str, used: Mapping[str, str]) -> None:
        versions = ", ".join(sorted(set(used.values())))
        super().__init__(f"{len(used)} pieces of feedback were used for {versions} meanwhile")
        self.lineage = lineage
        self.feedback_ids = sorted(used)


def refuse_used(registry: Registry, lineage: str, feedback_ids: Collection[str]) -> None:
    """Raises UsedElsewhere when a version of `lineage` has learned from any of the feedback."""
    known = registry.used_feedback(lineage)
    used = {name: known[name] for name in feedback_ids if name in known}
    if used:
        raise UsedElsewhere(lineage, used)


def consumed_offsets(registry: Registry, group: str) -> dict[tuple[str, int], int]:
    """How far the log had been read, by (topic, partition), when the newest policies were made."""
    consumed: dict[tuple[str, int], int] = {}
    for version in registry.versions("policy"):
        for name, parts in registry.manifest(version).offsets.items():
            if name.startswith(f"{group}/"):
                for part, following in parts.items():
                    place = name.removeprefix(f"{group}/"), int(part)
                    consumed[place] = max(following, consumed.get(place, 0))
    return consumed
