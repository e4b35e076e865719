"""The registry's digest of safetensors files is that of the tensors a serving process holds."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anyloop.config import TINY_OMNI
from anyloop.models.digest import weights_digest
from anyloop.registry.manifest import CheckpointError
from anyloop.registry.weights import safetensors_digest


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        "model.b": torch.randn(3, 5, generator=generator),
        "model.a": torch.randn(4, 2, generator=generator).to(torch.bfloat16),
        "half": torch.randn(2, 3, 2, generator=generator).to(torch.float16),
        "double": torch.randn(2, generator=generator, dtype=torch.float64),
        "count": torch.tensor(3),
        "vector": torch.arange(7, dtype=torch.int64),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "one": torch.tensor([1.5]),
    }


def test_equals_the_digest_of_the_tensors_as_fp32_whatever_their_type_and_file(tmp_path: Path) -> None:
    tensors = _tensors()
    names = sorted(tensors)
    save_file({name: tensors[name] for name in names[::2]}, tmp_path / "b.safetensors", {"format": "pt"})
    save_file({name: tensors[name] for name in names[1::2]}, tmp_path / "a.safetensors")
    assert safetensors_digest(tmp_path) == weights_digest({name: value.float() for name, value in tensors.items()})


def test_changes_with_one_value(tmp_path: Path) -> None:
    tensors = _tensors()
    save_file(tensors, tmp_path / "model.safetensors")
    before = safetensors_digest(tmp_path)
    tensors["half"][1, 2, 1] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert safetensors_digest(tmp_path) != before


def test_a_cut_file_and_an_unknown_type_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(_tensors(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        safetensors_digest(tmp_path)
    save_file({"w": torch.zeros(2).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(CheckpointError, match="w has the type F8_E4M3"):
        safetensors_digest(tmp_path)
    path.unlink()
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        safetensors_digest(tmp_path)


def test_a_base_checkpoint_is_registered_without_torch(tmp_path: Path) -> None:
    """As in the image of the services, whose models run in Triton."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from anyloop.registry import Registry\n"
        f"print(Registry(Path({str(tmp_path)!r})).import_base('policy', Path({str(TINY_OMNI)!r})).weights_digest)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    from safetensors.torch import load_file

    assert done.stdout.strip() == weights_digest(load_file(TINY_OMNI / "model.safetensors"))
