"""A hundred swaps under load keep no more memory than twenty."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

import pytest

from anyloop.config import Settings
from services.hosts.inprocess_host import InprocessHost
from services.policy.program import PolicyProgram
from tests.models.random_omni import build_random_omni

SWAPS, WARM = 100, 20
GROWTH_MB = 6.0  # one version of this model in memory takes 4.1 MB: keeping every tenth would already show


def resident_mb() -> float:
    """Memory of this process in RAM, shared pages included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS in /proc/self/status")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("wide")
    return [build_random_omni(root / str(seed), seed, hidden=256) for seed in range(2)]


async def test_a_hundred_swaps_in_a_row_do_not_grow_the_process(models: list[Path]) -> None:
    settings = Settings(engine_slots=4, engine_max_tokens=64)
    host = InprocessHost({"policy": PolicyProgram(models[0], settings)})
    stopping = False
    answers = 0

    async def client(number: int) -> None:
        nonlocal answers
        while not stopping:
            sampling = {"seed": answers, "max_tokens": 8}
            request = {"op": "generate", "prompt": [1, 2, number], "modalities": ["text"], "sampling": sampling}
            async for _ in host.stream("policy", request):
                pass
            answers += 1

    async def swap(number: int) -> None:
        path, version = str(models[number % 2]), f"v{number}"
        await host.call("policy", {"op": "load", "version": version, "path": path})
        await host.call("policy", {"op": "activate", "version": version})

    await swap(0)
    clients = [asyncio.create_task(client(number)) for number in range(3)]
    gc.collect()
    gc.disable()  # a version that only a full collection finds would fill the memory of a larger model first
    try:
        for number in range(1, WARM + 1):
            await swap(number)
        after_warm = resident_mb()
        for number in range(WARM + 1, SWAPS + 1):
            await swap(number)
        growth = resident_mb() - after_warm
    finally:
        gc.enable()
        stopping = True
        await asyncio.gather(*clients)
        await host.close()
    assert answers > SWAPS
    assert growth < GROWTH_MB
