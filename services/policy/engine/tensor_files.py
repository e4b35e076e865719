"""Reads safetensors files into memory of their own, hashing what it reads.

The usual loaders map the files instead. A process that serves from a map dies of SIGBUS when the file is cut short, its
pages compete with everything else for memory, and what was hashed may not be what is read later. Here every byte is
read once, in pieces that leave the interpreter to the decode steps, and one allocation per file goes back whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

_PIECE = 2**20  # bytes read and hashed at a time
_MOST_HEADER = 100 * 2**20  # the limit of the format
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFileError(Exception):
    """The file is not what it should be; reading it again would not help."""


def read_tensors(folder: Path, sha256: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of every `*.safetensors` file of `folder`. `sha256` names the hash of each file that has a known one.

    Raises TensorFileError, and OSError when the disk does not answer.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = _read_file(path, sha256.get(path.name, ""))
        twice = tensors.keys() & found.keys()
        if twice:
            raise TensorFileError(f"{path.name} holds {min(twice)}, which another file holds too")
        tensors |= found
    if not tensors:
        raise TensorFileError("there are no tensors in *.safetensors files")
    return tensors


def _read_file(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    hasher = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = path.stat().st_size
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length <= min(_MOST_HEADER, size - 8):
            raise TensorFileError(f"{path.name} is cut short, or no safetensors file")
        header = file.read(length)
        hasher.update(prefix)
        hasher.update(header)
        data = torch.empty(size - 8 - length, dtype=torch.uint8)
        view = memoryview(data.numpy())
        at = 0
        while at < len(view):
            count = file.readinto(view[at : at + _PIECE])
            if not count:
                raise TensorFileError(f"{path.name} ended {len(view) - at} bytes early while it was read")
            hasher.update(view[at : at + count])
            at += count
    if sha256 and hasher.hexdigest() != sha256:
        raise TensorFileError(f"{path.name} has SHA-256 {hasher.hexdigest()}, the manifest says {sha256}")
    return _tensors(path.name, header, data)


def _tensors(name: str, header: bytes, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """Views into `data`, where `header` says."""
    tensors = {}
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for tensor, entry in entries.items():
            dtype = _DTYPES[entry["dtype"]]
            begin, end = entry["data_offsets"]
            if not 0 <= begin <= end <= len(data):
                raise ValueError(f"{tensor} stands at {begin} to {end} of {len(data)} bytes")
            piece = data[begin:end]
            if begin % dtype.itemsize:
                piece = piece.clone()
            tensors[tensor] = piece.view(dtype).reshape(entry["shape"])
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise TensorFileError(f"the header of {name} cannot be read: {error!r}") from error
    return tensors
