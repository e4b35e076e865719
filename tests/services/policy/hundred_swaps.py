"""A process of its own for `test_swap_memory`: swaps under load, and how much memory they kept. Prints JSON.

python hundred_swaps.py MODEL_DIRECTORY MODEL_DIRECTORY
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from pathlib import Path

from anyloop.config import Settings
from services.hosts.inprocess_host import InprocessHost
from services.policy.program import PolicyProgram

SWAPS, WARM = 100, 20


def resident_mb() -> float:
    """Memory of this process in RAM, shared pages included."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS in /proc/self/status")


async def main(models: list[str]) -> dict[str, float]:
    host = InprocessHost({"policy": PolicyProgram(Path(models[0]), Settings(engine_slots=4, engine_max_tokens=64))})
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
        version = f"v{number}"
        await host.call("policy", {"op": "load", "version": version, "path": models[number % 2]})
        await host.call("policy", {"op": "activate", "version": version})

    await swap(0)
    clients = [asyncio.create_task(client(number)) for number in range(3)]
    gc.collect()
    gc.disable()  # a version that only a full collection finds would fill the memory of a larger model first
    for number in range(1, WARM + 1):
        await swap(number)
    after_warm = resident_mb()
    for number in range(WARM + 1, SWAPS + 1):
        await swap(number)
    growth = resident_mb() - after_warm
    gc.enable()
    stopping = True
    await asyncio.gather(*clients)
    await host.close()
    return {"swaps": SWAPS, "answers": answers, "growth_mb": growth}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1:]))))
