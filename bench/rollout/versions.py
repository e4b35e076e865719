"""Checkpoints to roll out: sound ones, one that fails when it runs, one whose files are damaged."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anyloop.log import EventLog
from anyloop.registry import Registry, announce
from anyloop.registry.announce import APPROVED
from anyloop.registry.registry import safetensors_digest

LINEAGE = "policy"
BASE = "policy-000000"
Change = Callable[[str, torch.Tensor], torch.Tensor]


class Versions:
    """Publishes into `registry`, children of the base checkpoint."""

    def __init__(self, registry: Registry, log: EventLog) -> None:
        self._registry = registry
        self._log = log
        self._made = 0

    def sound(self) -> str:
        """Each weight a few percent larger or smaller."""
        self._made += 1
        generator = torch.Generator().manual_seed(self._made)
        return self._publish(
            lambda name, tensor: tensor * (1.0 + 0.02 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        )

    def overflowing(self) -> str:
        """Finite weights, sound files, every check at the loading passes; and each answer is infinity or NaN."""
        return self._publish(
            lambda name, tensor: torch.full_like(tensor, 3e38) if name == "model.norm.weight" else tensor
        )

    def damaged(self) -> str:
        """One byte of the weights has changed since they were published."""
        version = self.sound()
        file = next(self._registry.path(version).glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.chmod(0o644)
        file.write_bytes(bytes(content))
        return version

    def approve(self, version: str, report: dict[str, float] | None = None) -> str:
        """What the gate does in its rollout mode; returns the version."""
        announce(
            self._log,
            LINEAGE,
            version,
            APPROVED,
            parent=BASE,
            digest=self._registry.manifest(version).weights_digest,
            reason="for the rollout",
            decided_by="gate",
            report=report or {},
        )
        return version

    def _publish(self, change: Change) -> str:
        base = self._registry.path(BASE)
        with tempfile.TemporaryDirectory() as scratch:
            made = Path(scratch)
            for path in base.iterdir():
                if path.suffix == ".safetensors":
                    tensors = {name: change(name, tensor) for name, tensor in load_file(path).items()}
                    save_file(tensors, made / path.name, metadata={"format": "pt"})
                elif path.is_file():
                    shutil.copyfile(path, made / path.name)
            digest = safetensors_digest(made)

            def write(folder: Path) -> None:
                shutil.copytree(made, folder, dirs_exist_ok=True)

            return self._registry.publish(LINEAGE, write, parent=BASE, weights_digest=digest).version
