"""The checkpoint registry: a folder with one sub-folder per version.

A version appears by one rename, so a reader sees all of it or nothing, whenever the writer died. Layout of a version:
Hugging Face files (`config.json`, `*.safetensors`, tokenizer files) and `manifest.json`. Never pickle.
"""

import contextlib
import dataclasses
import errno
import fcntl
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from anyloop.registry.files import describe_files, sha256, sync, sync_tree
from anyloop.registry.manifest import MANIFEST, CheckpointError, Manifest
from anyloop.registry.retired import Retired
from anyloop.registry.weights import safetensors_digest

__all__ = ["Progress", "Registry", "safetensors_digest"]

Progress = Callable[[str], None]  # told "written", "synced", "renamed" as a publication comes so far

_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_TEMPORARY = ".tmp-"
_STALE_TEMPORARY_SECONDS = 3600.0


class Registry:
    """Any number of processes may read, publish and prune the same root."""

    def __init__(self, root: Path) -> None:
        self._root = Path(root)
        self._retired = Retired(self._root)
        self._learned: dict[str, tuple[str, frozenset[str]]] = {}  # version -> (lineage, feedback ids): never changes

    def publish(
        self,
        lineage: str,
        write: Callable[[Path], None],
        *,
        parent: str,
        weights_digest: str,
        offsets: Mapping[str, Mapping[str, int]] | None = None,
        metrics: Mapping[str, Any] | None = None,
        version: str | None = None,
        check: Callable[[], None] = lambda: None,
        progress: Progress = lambda step: None,
    ) -> Manifest:
        """Lets `write` fill a temporary folder, syncs it and renames it to its version.

        `version` defaults to the next free `{lineage}-{number}`. `check` is called last, while no other process can
        publish; what it raises keeps the version from appearing. Raises CheckpointError when the version is taken or
        the folder does not hold a checkpoint; whatever `write` and `check` raise passes through. Either way nothing is
        left.
        """
        base = self.manifest(parent).base if parent and self._exists(parent) else parent
        temporary = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            write(temporary)
            (temporary / MANIFEST).unlink(missing_ok=True)
            manifest = Manifest(
                version="",
                lineage=_checked(lineage),
                parent=parent,
                created_unix_ms=time.time_ns() // 1_000_000,
                files=describe_files(temporary),
                weights_digest=weights_digest,
                offsets={topic: dict(parts) for topic, parts in (offsets or {}).items()},
                metrics=dict(metrics or {}),
                gate=None,
                base=base,
            )
            progress("written")
            sync_tree(temporary)
            progress("synced")
            with self._publishing():
                check()
                placed = self._place(temporary, manifest, version)
            progress("renamed")
            return placed
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def import_base(self, lineage: str, directory: Path) -> Manifest:
        """Registers a model directory as `{lineage}-000000`, the root of the lineage.

        Idempotent. Raises CheckpointError when the version exists with other weights, or the directory is no
        checkpoint. Folders inside (codecs) are not part of the checkpoint.
        """
        version = f"{_checked(lineage)}-000000"
        names = sorted(
            path.name
            for path in Path(directory).glob("*")
            if path.is_file() and path.suffix in {".json", ".safetensors", ".txt", ".jinja"} and path.name != MANIFEST
        )
        if "config.json" not in names:
            raise CheckpointError(f"{directory} is not a model directory: it has no config.json")

        def copy(folder: Path) -> None:
            for name in names:
                shutil.copyfile(directory / name, folder / name)

        if not self._exists(version):
            with contextlib.suppress(_VersionTaken):  # by another process that imports the same directory
                digest = safetensors_digest(Path(directory))
                return self.publish(lineage, copy, parent="", weights_digest=digest, version=version)
        manifest = self.verify(version)
        for name in names:
            if name not in manifest.files or manifest.files[name]["sha256"] != sha256(Path(directory) / name):
                raise CheckpointError(
                    f"{version} was imported from another model: {name} differs in {directory}. "
                    "Serve the model it was imported from, or start with an empty registry"
                )
        return manifest

    def versions(self, lineage: str) -> list[str]:
        """Oldest first; `damaged` ones are left out, so that one of them does not keep the others from use."""
        ours = [manifest for manifest in self._survey()[0] if manifest.lineage == lineage]
        return [manifest.version for manifest in sorted(ours, key=lambda m: (m.created_unix_ms, m.version))]

    def lineages(self) -> list[str]:
        """Every lineage that has a version: the live ones, `policy` and `critique`, and those of replays."""
        return sorted({manifest.lineage for manifest in self._survey()[0]})

    def damaged(self) -> dict[str, str]:
        """Versions of any lineage whose manifest cannot be read, and why."""
        return self._survey()[1]

    def _survey(self) -> tuple[list[Manifest], dict[str, str]]:
        manifests, damaged = [], {}
        for name in sorted(entry.name for entry in self._root.iterdir() if self._exists(entry.name)):
            try:
                manifests.append(self.manifest(name))
            except CheckpointError as error:
                if self._exists(name):  # another process may have pruned it meanwhile
                    damaged[name] = str(error)
        return manifests, damaged

    def path(self, version: str) -> Path:
        """Raises CheckpointError when there is no such version."""
        if not self._exists(version):
            raise CheckpointError(f"no version {version[:128]!r} in the registry")
        return self._root / version

    def manifest(self, version: str) -> Manifest:
        """Raises CheckpointError."""
        path = self.path(version) / MANIFEST
        try:
            manifest = Manifest.from_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{version}: {MANIFEST} cannot be read: {error}") from error
        except CheckpointError as error:
            raise CheckpointError(f"{version}: {error}") from error
        if manifest.version != version:
            raise CheckpointError(f"{version}: {MANIFEST} is that of {manifest.version!r}")
        return manifest

    def verify(self, version: str) -> Manifest:
        """Hashes every file again. Raises CheckpointError: missing, truncated, changed, or not in the manifest."""
        manifest = self.manifest(version)
        folder = self.path(version)
        for name, entry in manifest.files.items():
            path = folder / name
            if path.is_symlink() or not path.is_file():
                raise CheckpointError(f"{version}: {name} is missing")
            size = path.stat().st_size
            if size != entry["bytes"]:
                raise CheckpointError(f"{version}: {name} has {size} bytes, not {entry['bytes']}")
            if sha256(path) != entry["sha256"]:
                raise CheckpointError(f"{version}: {name} does not have the SHA-256 of the manifest")
        present = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
        extra = sorted(present - manifest.files.keys() - {MANIFEST})
        if extra:
            raise CheckpointError(f"{version}: {extra[0]} is not in the manifest")
        return manifest

    def record_gate(self, version: str, decision: Mapping[str, Any]) -> Manifest:
        """Writes the gate's decision into the manifest, atomically."""
        manifest = dataclasses.replace(self.manifest(version), gate=dict(decision))
        # Outside the version's folder, so that a concurrent verify never sees a stray file.
        temporary = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            temporary.write_text(manifest.to_json(), encoding="utf-8")
            sync(temporary)
            temporary.replace(self.path(version) / MANIFEST)
        finally:
            temporary.unlink(missing_ok=True)  # nothing is left where the disk was full
        sync(self.path(version))
        return manifest

    def delete(self, version: str) -> None:
        """The name stays used, and the feedback it learned from stays known until `forget`.

        Raises CheckpointError when there is no such version.
        """
        folder = self.path(version)
        self._retired.take(version, folder / MANIFEST)
        self._remove(folder)

    def _remove(self, folder: Path) -> None:
        # Nobody looks for it any more; a removal that is cut short is for the next `prune`.
        hidden = self._root / f"{_TEMPORARY}{uuid.uuid4().hex}"
        with contextlib.suppress(FileNotFoundError):  # another process completes it
            folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)

    def used_feedback(self, lineage: str) -> dict[str, str]:
        """Feedback id -> the version of `lineage` that learned from it, deleted versions included. Reads a version
        once, so it may be asked often."""
        for version in (entry.name for entry in self._root.iterdir() if entry.name not in self._learned):
            with contextlib.suppress(CheckpointError):
                if self._exists(version):
                    manifest = self.manifest(version)
                    used = frozenset(manifest.metrics.get("feedback_ids", ()))
                    self._learned[version] = manifest.lineage, used
        for version in self._retired.names():
            if version not in self._learned:
                self._learned[version] = self._retired.feedback(version)
        return {name: version for version, (of, used) in self._learned.items() if of == lineage for name in used}

    def forget(self, published_before: float) -> None:
        """Forgets which feedback deleted versions learned from that were published before then (Unix seconds)."""
        for version in self._retired.forget(published_before):
            self._learned[version] = "", frozenset()

    def prune(self, lineage: str, keep: int, protect: set[str]) -> list[str]:
        """Deletes all but the newest `keep` versions, the protected ones and the base; returns what it deleted.

        Also removes what publishers that died have left.
        """
        if keep < 0:
            raise ValueError("keep must be 0 or more")
        versions = self.versions(lineage)
        kept = set(versions[len(versions) - keep :]) | protect | {f"{lineage}-000000"}
        doomed = [version for version in versions if version not in kept]
        for version in doomed:
            with contextlib.suppress(CheckpointError, FileNotFoundError):  # another process deletes it too
                self.delete(version)
        for name in self._retired.names():
            if (self._root / name).is_dir():  # its deletion was cut short
                self._remove(self._root / name)
        for entry in self._root.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime < _STALE_TEMPORARY_SECONDS:
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()
        return doomed

    def _place(self, temporary: Path, manifest: Manifest, version: str | None) -> Manifest:
        while True:
            name = _checked(version) if version else self._next_version(manifest.lineage)
            if self._taken(name):
                if not version:
                    continue  # another publisher took the number since it was found free
                raise _VersionTaken(f"version {name} exists already, or existed once")
            named = dataclasses.replace(manifest, version=name, base=manifest.base or name)
            (temporary / MANIFEST).write_text(named.to_json(), encoding="utf-8")
            sync(temporary / MANIFEST)
            sync(temporary)
            try:
                temporary.rename(self._root / name)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                if version:
                    raise _VersionTaken(f"version {name} exists already") from error
                continue  # another publisher took the number
            sync(self._root)
            return named

    def _exists(self, version: str) -> bool:
        return bool(_VERSION.fullmatch(version)) and (self._root / version / MANIFEST).is_file()

    @contextlib.contextmanager
    def _publishing(self) -> Iterator[None]:
        """One process at a time, on this machine or, where the file system offers it, on all that share the folder."""
        descriptor = os.open(self._retired.lock_file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _taken(self, version: str) -> bool:
        return (self._root / version).exists() or version in self._retired

    def _next_version(self, lineage: str) -> str:
        pattern = re.compile(re.escape(lineage) + r"-(\d{6,})")
        names = [entry.name for entry in self._root.iterdir()] + self._retired.names()
        numbers = [int(match.group(1)) for match in map(pattern.fullmatch, names) if match]
        return f"{lineage}-{max(numbers, default=0) + 1:06d}"  # 0 is the base's


class _VersionTaken(CheckpointError):
    pass


def _checked(name: str) -> str:
    if not _VERSION.fullmatch(name):
        raise CheckpointError(f"{name[:128]!r} is not a name: letters, digits, dot, dash and underscore, up to 128")
    return name
