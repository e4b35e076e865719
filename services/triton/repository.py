"""Writes the Triton model repository: one folder per Triton model, each a thin wrapper around our programs.

`services.hosts.placement` says which programs share a Triton model. Nothing in the repository names a machine: models
read `ANYLOOP_*` settings and import `services` and `anyloop` from `PYTHONPATH`, so it runs in NVIDIA's image as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.hosts.interface import MODELS
from services.hosts.payload import TENSOR
from services.hosts.placement import triton_models

MODEL_PY = '''"""Triton loads this file; the model itself is `services.triton.model`."""

import os
import sys

# The interpreter inside the stub does not read PYTHONPATH by itself.
sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]

from services.triton.model import TritonPythonModel  # noqa: E402

__all__ = ["TritonPythonModel"]
'''


def model_config(name: str, programs: Sequence[str]) -> str:
    """The `config.pbtxt` of one Triton model that runs `programs`."""
    # Decoupled: any number of answers per request. Batching is the engine's own, so Triton's stays off.
    return f"""name: "{name}"
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [ {{ name: "{TENSOR}" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
output [ {{ name: "{TENSOR}" data_type: TYPE_UINT8 dims: [ -1 ] }} ]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
parameters {{ key: "programs" value: {{ string_value: "{",".join(programs)}" }} }}
"""


def build_repository(directory: Path, models: Sequence[str] = MODELS) -> Path:
    """Writes (or rewrites) the repository at `directory` and returns it."""
    for name, programs in triton_models(models).items():
        version = directory / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        (directory / name / "config.pbtxt").write_text(model_config(name, programs))
        (version / "model.py").write_text(MODEL_PY)
    return directory
