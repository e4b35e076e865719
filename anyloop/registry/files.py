"""The files of a checkpoint: listed, hashed, digested and brought to disk."""

import hashlib
import os
from pathlib import Path

from anyloop.registry.manifest import CheckpointError, FileEntry

_PICKLES = {".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}


def describe_files(folder: Path) -> dict[str, FileEntry]:
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{name} is not a regular file")
        if path.suffix in _PICKLES:
            raise CheckpointError(f"{name}: a checkpoint holds safetensors, never pickles")
        if path.is_file():
            files[name] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if "config.json" not in files:
        raise CheckpointError("the checkpoint has no config.json")
    if not any(name.endswith(".safetensors") for name in files):
        raise CheckpointError("the checkpoint has no safetensors file")
    return files


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
