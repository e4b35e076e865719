"""A version under another name, in another registry, or in another lineage: the same bytes with their own manifest."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyloop.registry.manifest import Manifest
from anyloop.registry.registry import Registry


def copy_version(
    source: Registry,
    version: str,
    target: Registry,
    *,
    lineage: str,
    parent: str,
    name: str | None = None,
    offsets: Mapping[str, Mapping[str, int]] | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> Manifest:
    """Publishes `version` of `source` in `target` as `name`, or as the lineage's next number.

    Files are verified first. They are hard links where both registries share a file system (no registry ever writes
    into a file it holds), copies elsewhere. Raises CheckpointError as `Registry.verify` and `publish` do.
    """
    manifest = source.verify(version)
    origin = source.path(version)

    def write(folder: Path) -> None:
        for file in manifest.files:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(origin / file, folder / file)
            except OSError:
                shutil.copyfile(origin / file, folder / file)

    return target.publish(
        lineage,
        write,
        parent=parent,
        weights_digest=manifest.weights_digest,
        offsets=offsets,
        metrics=metrics,
        version=name,
    )
