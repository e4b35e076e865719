"""A version under another name, in another registry, or in another lineage: the same bytes with their own manifest."""

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anyloop.registry.manifest import CheckpointError, Manifest
from anyloop.registry.registry import Registry

_OF_ITS_ROUND = ("round", "round_key")  # a resumed round of the live trainer must not take the copy for its own


class _UsedMeanwhile(Exception):
    """Another process has published a version that learned from the same feedback."""


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
    check: Callable[[], None] = lambda: None,
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
        check=check,
    )


def adopt(registry: Registry, version: str, lineage: str) -> Manifest:
    """`version` as the next one of a live lineage, to be promoted there; the same one where that was done before.

    Its feedback counts as used in that lineage from now on, so that the live trainer does not learn it a second time;
    what the lineage had used already stays with the version that did. Raises CheckpointError.
    """
    for name in registry.versions(lineage):
        if registry.manifest(name).metrics.get("adopted") == version:
            return registry.verify(name)
    origin = registry.manifest(version)
    learned = {name for one in ancestry(registry, version) for name in one.metrics.get("feedback_ids", ())}
    kept = {name: value for name, value in origin.metrics.items() if name not in _OF_ITS_ROUND}
    while True:
        new = learned - registry.used_feedback(lineage).keys()

        def still_new(new: set[str] = new) -> None:
            if new & registry.used_feedback(lineage).keys():
                raise _UsedMeanwhile

        with contextlib.suppress(_UsedMeanwhile):
            copied = copy_version(
                registry,
                version,
                registry,
                lineage=lineage,
                parent=version,
                offsets=origin.offsets,
                metrics=kept | {"adopted": version, "feedback_ids": sorted(new)},
                check=still_new,
            )
            return registry.record_gate(copied.version, origin.gate) if origin.gate else copied


def ancestry(registry: Registry, version: str) -> list[Manifest]:
    """The version and what it was trained from, newest first, as far as the registry still has them.

    Raises CheckpointError when it does not have the version itself.
    """
    line = [registry.manifest(version)]
    while line[-1].parent:
        try:
            line.append(registry.manifest(line[-1].parent))
        except CheckpointError:
            break
    return line
