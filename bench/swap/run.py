"""One run: for every model and host, swaps of each mode under running streams."""

from __future__ import annotations

import asyncio
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from anyloop.registry import Registry
from anyloop.registry.registry import safetensors_digest
from anyloop.sequence import Sequencer
from bench.serving.models import model_directory
from bench.serving.prompts import prompts_for
from bench.serving.stack import anyloop_stack
from bench.swap.greedy import Greedy
from bench.swap.target import InProcess, Target, ThroughTriton
from bench.swap.verdict import Reply, Swap, client_gaps, deviations, dropped, stalls

BASE = "policy-000000"


@dataclass(frozen=True)
class Plan:
    models: tuple[str, ...] = ("tiny-omni", "llama-7m")
    modes: tuple[str, ...] = ("finish", "keep", "recompute")
    hosts: tuple[str, ...] = ("in process", "Triton and policy service")
    streams: int = 32
    swaps: int = 50
    max_tokens: int = 64
    pause: float = 0.2  # seconds between two swaps
    out: Path = Path("bench-out")


def measure(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """The report. A host that fails raises; what is dropped or garbled stands in the rows."""
    rows = []
    for name in plan.models:
        directory = model_directory(name, plan.out / "models")
        other = perturbed(directory, plan.out / "models" / f"{name}-perturbed")
        copy = copy_seconds(directory)
        for host in plan.hosts:
            say(f"{name}, {host}")
            run = _in_process if host == "in process" else _through_triton
            for row in run(plan, directory, other, copy, say):
                rows.append({"model": name, "host": host, "copy_ms": copy * 1e3, **row})
    return {
        "plan": {**asdict(plan), "out": str(plan.out)},
        "machine": {"processor": platform.processor() or platform.machine(), "torch": torch.__version__},
        "rows": rows,
    }


def _in_process(
    plan: Plan, directory: Path, other: Path, copy: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    async def run() -> list[dict[str, Any]]:
        target = InProcess(directory, {BASE: directory, "perturbed": other})
        try:
            await target.swap(BASE, "finish")
            return await _modes(plan, target, {BASE: directory, "perturbed": other}, copy, say)
        finally:
            await target.close()

    return asyncio.run(run())


def _through_triton(
    plan: Plan, directory: Path, other: Path, copy: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    home = plan.out / "swap-home"
    shutil.rmtree(home, ignore_errors=True)

    async def run(stack: Any) -> list[dict[str, Any]]:
        target = ThroughTriton(stack)
        try:
            return await _modes(plan, target, {BASE: directory, _published(home, other): other}, copy, say)
        finally:
            await target.close()

    with anyloop_stack(directory, home) as stack:
        return asyncio.run(run(stack))


async def _modes(
    plan: Plan, target: Target, folders: dict[str, Path], copy: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """`folders` has the checkpoints of `BASE` and of the version that the swaps go to and from, by name."""
    (other,) = folders.keys() - {BASE}
    prompts = [one.tokens for one in prompts_for(Sequencer.from_pretrained(folders[BASE]), plan.streams, "swap")]
    own = {}
    for version in (BASE, other):
        await target.load(version)
        alone = [await target.answer(i, prompt, plan.max_tokens, version) for i, prompt in enumerate(prompts)]
        own[version] = [reply.tokens for reply in alone]
    rows = []
    for mode in plan.modes:
        say(f"{mode}: {plan.swaps} swaps under {plan.streams} streams")
        replies, swaps = await _under_load(plan, target, prompts, other, mode)
        row: dict[str, Any] = {
            "mode": mode,
            "answers": len(replies),
            "swaps": len(swaps),
            "dropped": len(dropped(replies)),
            "mixed": sum(len(reply.spans) > 1 for reply in replies),
            "alike": sum(a == b for a, b in zip(own[BASE], own[other], strict=True)),
        }
        if mode == "finish":
            greedy = {version: Greedy(folder, plan.max_tokens) for version, folder in folders.items()}
            ties = [
                not one.mixed and greedy[one.version].could_answer(prompts[one.prompt], one.found)
                for one in deviations(replies, own)
            ]
            row |= {"garbled": ties.count(False), "ties": ties.count(True)}
        rows.append(row | stalls(swaps, copy) | client_gaps(replies, swaps))
    return rows


async def _under_load(
    plan: Plan, target: Target, prompts: Sequence[list[int]], other: str, mode: str
) -> tuple[list[Reply], list[Swap]]:
    replies: list[Reply] = []
    stopping = False

    async def client(number: int) -> None:
        while not stopping:
            replies.append(await target.answer(number, prompts[number], plan.max_tokens))
            await asyncio.sleep(0)  # also where every answer fails at once

    clients = [asyncio.create_task(client(number)) for number in range(plan.streams)]
    swaps = []
    try:
        await asyncio.sleep(5 * plan.pause)  # until the usual step is known
        for number in range(plan.swaps):
            swap = await target.swap((other, BASE)[number % 2], mode)
            await asyncio.sleep(plan.pause)
            swaps.append(replace(swap, quiet_gap=await target.quiet(swap.ended - swap.began)))
    finally:
        stopping = True
        await asyncio.gather(*clients)
    return replies, swaps


def perturbed(directory: Path, target: Path) -> Path:
    """A copy whose weights are each a few percent larger or smaller; what is zero stays zero."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(directory, target)
    generator = torch.Generator().manual_seed(0)
    for file in target.glob("*.safetensors"):
        tensors = {
            name: tensor * (1.0 + 0.05 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
            for name, tensor in load_file(file).items()
        }
        save_file(tensors, file, metadata={"format": "pt"})
    return target


def copy_seconds(directory: Path) -> float:
    """The time of one copy of the weights in memory: the median of nine."""
    count = sum(tensor.nbytes for file in directory.glob("*.safetensors") for tensor in load_file(file).values())
    source, target = torch.ones(count, dtype=torch.uint8), torch.zeros(count, dtype=torch.uint8)
    times = []
    for _ in range(9):
        began = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - began)
    return median(times)


def _published(home: Path, other: Path) -> str:
    def write(folder: Path) -> None:
        for path in other.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)

    registry = Registry(home / "registry")
    return registry.publish("policy", write, parent=BASE, weights_digest=safetensors_digest(other)).version
