"""One codec as a model program: arrays to codes and back, in Triton's decoder models and in the in-process host."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyloop.models.codec import PatchVQ
from anyloop.models.digest import weights_digest
from services.hosts.interface import HostError


class DecoderProgram:
    """Answers dictionaries with dictionaries; raises HostError. Safe to call from several threads.

    `{"op": "encode", "data": array or bytes}` -> `{"codes": [int]}`;
    `{"op": "decode", "codes": [int]}` -> `{"data": float32 array}`;
    `{"op": "status"}` -> `{"modality", "shape", "rate", "code_length", "codebook_size", "digest"}`.
    """

    def __init__(self, codec_dir: str | Path) -> None:
        self._codec = PatchVQ.from_pretrained(str(codec_dir)).eval()
        self._digest = weights_digest(self._codec.state_dict())

    def handle(self, request: Mapping[str, Any]) -> dict[str, Any]:
        operation = request.get("op")
        if operation == "encode":
            return {"codes": self.encode(self._array(request.get("data")))}
        if operation == "decode":
            return {"data": self.decode(request.get("codes"))}
        if operation == "status":
            return self.status()
        raise HostError("INVALID_ARGUMENT", f"unknown operation {operation!r}; use encode, decode or status")

    def status(self) -> dict[str, Any]:
        config = self._codec.config
        return {
            "modality": config.modality,
            "shape": list(config.input_shape),
            "rate": config.rate,
            "code_length": config.code_length,
            "codebook_size": config.codebook_size,
            "digest": self._digest,
        }

    def encode(self, array: np.ndarray) -> list[int]:
        """Floats of the codec's shape to its codes."""
        return [int(code) for code in self._codec.encode(torch.from_numpy(array)[None])[0]]

    def decode(self, codes: Any) -> np.ndarray:
        """Codes to float32 of the codec's shape. Raises HostError INVALID_ARGUMENT on a wrong number or range."""
        config = self._codec.config
        given = np.asarray(codes if codes is not None else [])
        if given.shape != (config.code_length,) or given.dtype.kind not in "iu":
            raise HostError(
                "INVALID_ARGUMENT", f"{config.modality} takes {config.code_length} whole numbers, not {given.size}"
            )
        if given.min() < 0 or given.max() >= config.codebook_size:
            raise HostError("INVALID_ARGUMENT", f"{config.modality} codes lie in [0, {config.codebook_size})")
        decoded = self._codec.decode(torch.from_numpy(given.astype(np.int64))[None])[0]
        return np.ascontiguousarray(decoded.numpy(), dtype=np.float32)

    def _array(self, data: Any) -> np.ndarray:
        shape = tuple(self._codec.config.input_shape)
        try:
            flat = (np.frombuffer if isinstance(data, bytes) else np.asarray)(data, dtype=np.float32)
        except (TypeError, ValueError):
            flat = np.empty(0, dtype=np.float32)
        if flat.size != int(np.prod(shape)) or not np.isfinite(flat).all():
            raise HostError("INVALID_ARGUMENT", f"this codec takes finite floats of shape {list(shape)}")
        return np.array(flat.reshape(shape))
