"""Builds `decode_attention.c` with the compiler of the machine, once, and calls it. Without one, torch attends."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

log = logging.getLogger(__name__)

MOST_DIMENSION = 256  # as in the C file
_SOURCE = Path(__file__).with_suffix(".c")
_FLAGS = ("-O3", "-march=native", "-ffast-math", "-fPIC", "-std=c11")
_SECONDS = 60.0


class DecodeAttention:
    """Writes the new keys and values of a step and attends, in one call per layer, without the interpreter's lock."""

    def __init__(self, function: Any, heads: int, kv_heads: int, dimension: int, scale: float) -> None:
        self._function = function
        self._heads, self._kv_heads, self._dimension, self._scale = heads, kv_heads, dimension, scale
        self._weights = torch.empty(0)

    def __call__(
        self,
        qkv: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        window: int,
    ) -> torch.Tensor:
        """`qkv` `[batch, heads + 2 key-value heads, dimension]` over a layer's cache; `[batch, heads x dimension]`."""
        length = keys.shape[2]
        group = self._heads // self._kv_heads
        if len(self._weights) < group * length:
            self._weights = torch.empty(group * length, dtype=torch.float32)
        out = torch.empty(len(qkv), self._heads * self._dimension, dtype=torch.float32)
        self._function(
            out.data_ptr(),
            qkv.data_ptr(),
            qkv.stride(0),
            keys.data_ptr(),
            values.data_ptr(),
            rows.data_ptr(),
            positions.data_ptr(),
            len(qkv),
            self._heads,
            self._kv_heads,
            self._dimension,
            length,
            window,
            self._scale,
            self._weights.data_ptr(),
        )
        return out


def decode_attention(heads: int, kv_heads: int, dimension: int, scale: float) -> DecodeAttention | None:
    """None where it cannot be built, or would not pay: it runs on one thread, torch's own on all that torch has."""
    if dimension > MOST_DIMENSION or torch.get_num_threads() > 1:
        return None
    function = _function()
    return DecodeAttention(function, heads, kv_heads, dimension, scale) if function is not None else None


@cache
def _function() -> Any:
    """The compiled function; None, said once in the log, where there is no compiler or it fails."""
    try:
        function = ctypes.CDLL(str(_library())).decode_attention
    except (OSError, RuntimeError, AttributeError, subprocess.SubprocessError) as error:  # no home: RuntimeError
        log.info("attention runs by torch, slower with many streams: %s", error)
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [
        *(pointer, pointer, integer, pointer, pointer, pointer, pointer),
        *([integer] * 6),
        *(ctypes.c_float, pointer),
    ]
    function.restype = None
    return function


def _library() -> Path:
    """Compiles where it has not been done for this source, these flags and this processor. Raises OSError."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise OSError("no C compiler was found (install one, for example gcc)")
    source = _SOURCE.read_bytes()
    name = hashlib.sha256(b"\0".join([source, *(flag.encode() for flag in _FLAGS), _processor()])).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anyloop"
    library = folder / f"decode_attention-{name}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        compiled, linked = Path(scratch) / "attention.o", Path(scratch) / "attention.so"
        # Linked apart: with -ffast-math the linker would add code that changes the process's float32 arithmetic.
        for command in (
            [compiler, *_FLAGS, "-c", str(_SOURCE), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(linked), "-lm"],
        ):
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            if done.returncode:
                raise OSError(f"{compiler} failed: {done.stderr.strip().partition(chr(10))[0]}")
        linked.replace(library)  # in one move: another process may look at the same time
    return library


def _processor() -> bytes:
    """What -march=native depends on, in so far as it can be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags"))})).encode()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
