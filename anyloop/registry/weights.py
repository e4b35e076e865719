"""The digest of the weights in safetensors files, tensor by tensor.

The same hash as `anyloop.models.digest.weights_digest` of the tensors as fp32, but without torch: a service whose
models run in Triton registers its base checkpoint, and its image holds no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from anyloop.registry.manifest import CheckpointError

_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def safetensors_digest(directory: Path) -> str:
    """`weights_digest` over all tensors of the directory's safetensors files, as fp32. Raises CheckpointError."""
    tensors = dict(entry for path in sorted(directory.glob("*.safetensors")) for entry in _tensors(path))
    if not tensors:
        raise CheckpointError(f"{directory} holds no safetensors file")
    total = hashlib.sha256()
    for name in sorted(tensors):
        values = _as_fp32(*tensors[name])
        shape = tuple(tensors[name][2]["shape"])
        total.update(f"{name}\0torch.float32\0{shape}\0".encode())
        total.update(values.view(np.uint8).data)
    return total.hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, tuple[Path, int, dict[str, Any]]]]:
    """Name -> file, where its header ends, and what the header says of the tensor."""
    try:
        with safe_open(path, framework="numpy"):  # the header is sound, and the file as long as it says
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a whole safetensors file: {error}") from error
    header.pop("__metadata__", None)
    for name, entry in header.items():
        if entry["dtype"] != "BF16" and entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path.name}: {name} has the type {entry['dtype']}, which no policy here is kept in")
        yield name, (path, 8 + length, entry)


def _as_fp32(path: Path, begin: int, entry: dict[str, Any]) -> npt.NDArray[np.float32]:
    first, end = entry["data_offsets"]
    with path.open("rb") as file:
        file.seek(begin + first)
        data = file.read(end - first)
    if entry["dtype"] == "BF16":  # the upper half of an fp32 number
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, _DTYPES[entry["dtype"]]).astype(np.float32, copy=False)
    return values
