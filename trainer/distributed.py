"""One process, or several started by torchrun: who runs what.

Rank 0 is the learner: it alone reads the log, calls services and publishes. Training functions run on every rank:
rank 0 sends the call, the others wait for it in `serve()`.
"""

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class World:
    """The group of training processes; of size one when `WORLD_SIZE` is unset or 1."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.size > 1:
            self.open_group()

    def open_group(self) -> None:
        """Joins the processes as DeepSpeed wants it; also one process alone, which DeepSpeed needs to offload."""
        if dist.is_initialized():
            return
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # batches are made on the CPU, so the weights must be there
        import deepspeed

        # Its shared-memory collectives are compiled on first use: minutes on a small machine, and an abort or a
        # stale lock when two ranks do so at once. Gloo itself is enough here.
        # And DeepSpeed 0.19 calls names that torch 2.13 warns of at every gathering.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if self.size == 1:
            os.environ.setdefault("LOCAL_RANK", "0")
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)

    def from_rank0(self, make: Callable[[], T] | None) -> T:
        """The value `make()` has on rank 0, on every rank. Only rank 0 calls it."""
        value = make() if self.rank == 0 and make is not None else None
        if self.size > 1:
            box = [value]
            dist.broadcast_object_list(box, src=0)
            value = box[0]
        return value  # type: ignore[return-value]

    def everyone(self, value: T) -> list[T]:
        """Each rank's `value`, by rank, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def largest(self, value: int) -> int:
        """The largest `value` of all ranks."""
        if self.size == 1:
            return value
        box = torch.tensor([value])
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box.item())

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of `values` over the ranks."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def shard(self, items: list[T]) -> list[tuple[T, float]]:
        """This rank's items with weight 1, padded with repeats of weight 0 so that every rank has equally many."""
        each = -(-len(items) // self.size)
        mine = items[self.rank :: self.size]
        padding = [(items[0], 0.0)] * (each - len(mine))
        return [(item, 1.0) for item in mine] + padding

    def call(self, function: Callable[..., T], *args: Any, local: dict[str, Any] | None = None) -> T:
        """Runs `function(world, *args)` on every rank; `local` keyword arguments exist on rank 0 only."""
        if self.size > 1:
            dist.broadcast_object_list([(function.__module__, function.__qualname__, args)], src=0)
        return function(self, *args, **(local or {}))

    def serve(self) -> None:
        """Runs the calls of rank 0 until it says stop. For ranks above 0."""
        while True:
            box: list[Any] = [None]
            dist.broadcast_object_list(box, src=0)
            if box[0] is None:
                return
            module, name, args = box[0]
            getattr(importlib.import_module(module), name)(self, *args)

    def close(self) -> None:
        """Lets the other ranks leave `serve()` and ends the group."""
        if self.size > 1 and self.rank == 0:
            dist.broadcast_object_list([None], src=0)
        if dist.is_initialized():
            dist.destroy_process_group()
