"""One process, or several started by torchrun: who runs what.

Rank 0 is the learner: it alone reads the log, calls services and publishes. Training functions run on every rank:
rank 0 sends the call, the others wait for it in `serve()`. What rank 0 does alone may take hours, so calls and values
go over a group of their own, which waits for as long as it takes.
"""

import importlib
import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE = timedelta(days=3650)  # of a process that waits for rank 0: a learner may have nothing to learn for weeks


class RankZeroFailed(RuntimeError):
    """What rank 0 was to do for all processes failed there; it has the error itself."""


class World:
    """The group of training processes; of size one when `WORLD_SIZE` is unset or 1."""

    def __init__(self) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._control: dist.ProcessGroup | None = None
        self._told: BaseException | None = None  # the last error of rank 0 that every process knows of
        if self.size > 1:
            self.open_group()
            self._control = dist.new_group(backend="gloo", timeout=PATIENCE)

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
        """The value `make()` has on rank 0, on every rank. Only rank 0 calls it.

        What it raises is raised on rank 0, and RankZeroFailed on the others.
        """
        if self.size == 1:
            return make() if make is not None else None  # type: ignore[return-value]
        if self.rank:
            ok, value = self._from_rank0(None)
            if not ok:
                raise RankZeroFailed(value)
            return value  # type: ignore[no-any-return]
        try:
            made = make() if make is not None else None
        except BaseException as error:  # also an interrupt: the others must not take the next call for its answer
            self._told = error
            self._from_rank0((False, f"{type(error).__name__}: {error}"))
            raise
        self._from_rank0((True, made))
        return made  # type: ignore[return-value]

    def _from_rank0(self, value: Any) -> Any:
        """`value` of rank 0, however long it takes to come."""
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

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
        if not items:
            return []
        each = -(-len(items) // self.size)
        mine = items[self.rank :: self.size]
        padding = [(items[0], 0.0)] * (each - len(mine))
        return [(item, 1.0) for item in mine] + padding

    def call(self, function: Callable[..., T], *args: Any, local: dict[str, Any] | None = None) -> T:
        """Runs `function(world, *args)` on every rank; `local` keyword arguments exist on rank 0 only.

        After an error in `from_rank0` the processes are ready for the next call. After any other they are not at the
        same place any more: SystemExit ends this one, and with it the group.
        """
        if self.size == 1:
            return function(self, *args, **(local or {}))
        self._from_rank0((function.__module__, function.__qualname__, args))
        try:
            return function(self, *args, **(local or {}))
        except Exception as error:
            if error is self._told:
                raise
            log.exception("%s failed in the middle of what %d processes do together", function.__name__, self.size)
            raise SystemExit("start the processes again: the round goes on at its last checkpoint") from error

    def serve(self) -> None:
        """Runs the calls of rank 0 until it says stop. For ranks above 0."""
        while (call := self._from_rank0(None)) is not None:
            module, name, args = call
            try:
                getattr(importlib.import_module(module), name)(self, *args)
            except RankZeroFailed as error:
                log.warning("%s was given up by rank 0: %s", name, error)

    def close(self) -> None:
        """Lets the other ranks leave `serve()` and ends the group."""
        if self.size > 1 and self.rank == 0:
            self._from_rank0(None)
        if dist.is_initialized():
            dist.destroy_process_group()
