"""Which record this is, by what it holds: in any order of its keys, from JSON as from Parquet where types agree."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def fingerprint(values: Mapping[str, Any]) -> str:
    """SHA-256, in hexadecimal, of all keys that hold something. 3 and 3.0 are the same."""
    digest = hashlib.sha256()
    _add(digest, values)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        digest.update(b"{")
        for key in sorted(value):
            if value[key] is not None:
                _put(digest, b"k", str(key).encode())
                _add(digest, value[key])
        digest.update(b"}")
    elif isinstance(value, list | tuple | np.ndarray):
        numbers = _numbers(value)
        if numbers is not None:
            _put(digest, b"a", numbers)
        else:
            digest.update(b"[")
            for one in value:
                _add(digest, one)
            digest.update(b"]")
    elif isinstance(value, bytes):
        _put(digest, b"b", value)
    elif isinstance(value, int) or (isinstance(value, float) and math.isfinite(value) and value == int(value)):
        _put(digest, b"n", str(int(value)).encode())
    else:
        _put(digest, b"s", str(value).encode("utf-8", "surrogatepass"))


def _put(digest: Any, kind: bytes, data: bytes) -> None:
    """With its length, so that no two values run into each other."""
    digest.update(kind + len(data).to_bytes(8, "big") + data)


def _numbers(value: Any) -> bytes | None:
    """A list or array of real numbers as bytes, so that sound is not walked through sample by sample."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return value.astype("<f8").tobytes()
    if isinstance(value, list) and value and all(type(one) in (int, float) for one in value):
        try:
            return np.asarray(value, dtype="<f8").tobytes()
        except OverflowError:  # an integer beyond any float
            return None
    return None
