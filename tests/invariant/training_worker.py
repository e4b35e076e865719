"""One process of a training: DPO as `python -m trainer` runs it, on rank 0 and by call on the others.

Arguments: checkpoint, output folder, a JSON list of settings, each of them one training. `stop_at` ends rank 0 when so
many steps are saved, as a kill would.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

import trainer.zero
from trainer import checkpointing
from trainer.algorithms import dpo
from trainer.batches import TokenSequence
from trainer.checkpointing import SavePoint
from trainer.distributed import World
from trainer.engine import Engine
from trainer.examples import Example, Pair
from trainer.optimisation import OptimConfig
from trainer.trained import Trained

PAIRS = [Pair((1, 2, 3 + i), (20, 21, 22, i), (30, 31 + i), "preference", str(i), 0.5 + i / 10) for i in range(7)]
LIKED = [Example(TokenSequence((5, i), (6, 7)), str(i)) for i in range(3)]
ENGINES: list[trainer.zero.DeepSpeedEngine] = []


def train(world: World, checkpoint: Path, saving: SavePoint | None, **options: Any) -> tuple[list[float], Trained]:
    """Losses of all steps done here, summed over the processes, and the outcome."""
    losses: list[float] = []
    plain = dpo.dpo_step

    def step(engine: Engine, *arguments: Any, **named: Any) -> dict[str, float]:
        if isinstance(engine, trainer.zero.DeepSpeedEngine) and engine not in ENGINES:
            ENGINES.append(engine)
        seen = plain(engine, *arguments, **named)
        losses.append(float(world.total(torch.tensor(seen["loss"], dtype=torch.float64))))
        return seen

    dpo.dpo_step = step
    try:
        config = dpo.DPOConfig(lr=1e-3, epochs=2, batch=3)
        optim = OptimConfig(batch_tokens=32, **options)
        return losses, dpo.train_dpo(world, checkpoint, checkpoint, PAIRS, LIKED, config, optim, saving)
    finally:
        dpo.dpo_step = plain


def die_after(steps: int) -> None:
    saved: list[object] = []

    def reached(point: object) -> None:
        saved.append(point)
        if len(saved) == steps:
            os._exit(9)

    checkpointing.reached = reached


def main() -> None:
    checkpoint, out, runs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    trainer.zero.PERSISTENT = 0  # or ZeRO-3 would leave tensors of this size whole
    world = World()
    for number, options in enumerate(runs):
        die_after(options.pop("stop_at", -1))
        saving = SavePoint(out / "state", 1) if options.pop("save", False) else None
        losses, trained = train(world, checkpoint, saving, **options)
        if world.rank == 0:
            weights = {name: tensor.clone() for name, tensor in trained.tensors.items()}
            save_file(weights, out / f"{number}.safetensors")
            (out / f"{number}.json").write_text(json.dumps([losses, offloads()]))
    torch.distributed.destroy_process_group()


def offloads() -> list[bool]:
    """Of every DeepSpeed engine so far: whether it keeps its optimiser's state on the host."""
    return [engine.module.zero_cpu_offload() for engine in ENGINES]


if __name__ == "__main__":
    main()
