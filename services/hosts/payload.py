"""Requests and answers as bytes: JSON, with arrays and bytes kept binary behind it.

Layout: length of the JSON (little-endian uint32), the JSON, then the binary parts one after the other. In the JSON a
part stands as `{"$array": [offset, bytes, dtype, shape]}` or `{"$bytes": [offset, bytes]}`.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

TENSOR = "PAYLOAD"  # the one input and the one output of every Triton model
TARGET = "model"  # the key of a request that names the program, where several share a Triton model
_LENGTH = struct.Struct("<I")
_DTYPES = frozenset({"float32", "float64", "int64", "int32", "uint8", "bool"})


def pack(message: dict[str, Any]) -> bytes:
    """Raises TypeError on values that are neither JSON, numpy arrays nor bytes."""
    parts: list[bytes] = []
    offset = 0

    def encode(value: Any) -> Any:
        nonlocal offset
        if isinstance(value, np.ndarray):
            if value.dtype.name not in _DTYPES:
                raise TypeError(
                    f"arrays of {value.dtype} do not travel; convert to one of {', '.join(sorted(_DTYPES))}"
                )
            data = np.ascontiguousarray(value).tobytes()
            entry = {"$array": [offset, len(data), value.dtype.name, list(value.shape)]}
        elif isinstance(value, bytes | bytearray | memoryview):
            data = bytes(value)
            entry = {"$bytes": [offset, len(data)]}
        elif isinstance(value, np.generic):
            return value.item()
        else:
            raise TypeError(f"a {type(value).__name__} does not travel in a payload")
        parts.append(data)
        offset += len(data)
        return entry

    text = json.dumps(message, default=encode, separators=(",", ":")).encode()
    return b"".join([_LENGTH.pack(len(text)), text, *parts])


def unpack(payload: bytes) -> dict[str, Any]:
    """The inverse of `pack`. Raises ValueError on anything else."""
    try:
        (length,) = _LENGTH.unpack_from(payload)
        if _LENGTH.size + length > len(payload):
            raise ValueError("the JSON is cut off")
        body = memoryview(payload)[_LENGTH.size + length :]

        def decode(entry: dict[str, Any]) -> Any:
            if "$array" in entry:
                offset, size, dtype, shape = entry["$array"]
                if dtype not in _DTYPES:
                    raise ValueError(f"array of {dtype}")
                return np.frombuffer(_part(body, offset, size), dtype=dtype).reshape(shape)
            if "$bytes" in entry:
                return bytes(_part(body, *entry["$bytes"]))
            return entry

        message = json.loads(payload[_LENGTH.size : _LENGTH.size + length], object_hook=decode)
    except (struct.error, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"not a payload: {error}") from error
    if not isinstance(message, dict):
        raise ValueError("not a payload: the JSON is no object")
    return message


def _part(body: memoryview, offset: int, size: int) -> memoryview:
    if offset < 0 or size < 0 or offset + size > len(body):
        raise ValueError("a binary part is cut off")
    return body[offset : offset + size]
