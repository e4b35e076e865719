"""One process of a training: DPO as `python -m trainer` runs it, on rank 0 and by call on the others.

Arguments: checkpoint, output folder, a JSON list of settings, each of them one training. `fail`: no training, but calls
of which the first fails on rank 0. `stop_at` ends rank 0 when so many steps are saved, as a kill would.
"""

import gc
import json
import os
import sys
import weakref
from collections.abc import Callable
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
HELD: list[weakref.ref[torch.Tensor]] = []  # what the optimisers of DeepSpeed's engines hold
OFFLOADS: list[bool] = []  # whether each keeps its optimiser's state on the host


def train(world: World, checkpoint: Path, saving: SavePoint | None, **options: Any) -> tuple[list[float], Trained]:
    """Losses of all steps done here, summed over the processes, and the outcome."""
    losses: list[float] = []
    plain = dpo.dpo_step

    def step(engine: Engine, *arguments: Any, **named: Any) -> dict[str, float]:
        if isinstance(engine, trainer.zero.DeepSpeedEngine) and engine.steps == 0:
            optimizer = engine.module.optimizer
            three = hasattr(optimizer, "fp32_partitioned_groups_flat")
            flats = optimizer.fp32_partitioned_groups_flat if three else optimizer.single_partition_of_fp32_groups
            HELD.extend(map(weakref.ref, flats))
            OFFLOADS.append(engine.module.zero_cpu_offload())
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
        if options.pop("fail", False):
            found = calls(world)
            if world.rank == 0:
                (out / f"{number}.json").write_text(json.dumps(found))
            continue
        die_after(options.pop("stop_at", -1))
        saving = SavePoint(out / "state", 1) if options.pop("save", False) else None
        losses, trained = train(world, checkpoint, saving, **options)
        if world.rank == 0:
            weights = {name: tensor.clone() for name, tensor in trained.tensors.items()}
            save_file(weights, out / f"{number}.safetensors")
            (out / f"{number}.json").write_text(json.dumps([losses, OFFLOADS, left_over()]))
    torch.distributed.destroy_process_group()


def left_over() -> int:
    """How many of those tensors are still in memory."""
    gc.collect()
    return sum(one() is not None for one in HELD)


def calls(world: World) -> list[Any]:
    """On rank 0: what came of two calls, and for how many days the others would have waited for the next."""
    if world.rank:
        world.serve()
        return []
    found: list[Any] = []
    for answer in (0, 7):
        try:
            found.append(world.call(ask, "a", local={"rollouts": lambda answer=answer: 7 // answer}))
        except ZeroDivisionError as error:
            found.append(str(error))
    group = world._control
    assert group is not None
    world._from_rank0(None)
    return [*found, group._get_backend(torch.device("cpu")).options._timeout.days]


def ask(world: World, name: str, rollouts: Callable[[], int] | None = None) -> list[tuple[str, int, int]]:
    """A training call that needs something of rank 0, and then of every process."""
    return world.everyone((name, world.rank, world.from_rank0(rollouts)))


if __name__ == "__main__":
    main()
