"""What is compared: models, batches, and how often."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OURS, PEER = "anyloop", "trl"
DPO, ONLINE, PPO = "dpo", "grpo", "ppo"
KINDS = (DPO, ONLINE, PPO)


@dataclass(frozen=True)
class Workload:
    """Token counts are drawn evenly between the bounds; those of tiny-omni are what the world's tasks have.

    `pairs` per DPO step; `prompts` and `group` answers to each per online step, of at most `max_tokens`.
    `steps` are timed in each process, after one that is not.
    """

    model: str
    prompt: tuple[int, int] | None
    answer: tuple[int, int]
    pairs: int = 8
    prompts: int = 4
    group: int = 8
    max_tokens: int = 64
    steps: int = 3
    online_steps: int = 2


WORKLOADS = {
    "tiny-omni": Workload("tiny-omni", None, (0, 96), max_tokens=96, pairs=16, steps=6, online_steps=4),
    "llama-7m": Workload("llama-7m", (96, 160), (32, 96)),
    "llama-27m": Workload("llama-27m", (128, 256), (32, 96), steps=2, online_steps=1),
}
QUICK = Workload("llama-7m", (16, 24), (4, 8), pairs=4, prompts=2, group=4, max_tokens=8, steps=1, online_steps=1)


@dataclass(frozen=True)
class Plan:
    workloads: tuple[Workload, ...] = tuple(WORKLOADS.values())
    kinds: tuple[str, ...] = KINDS
    repeats: int = 2  # processes of each contender, in turn
    out: Path = field(default=Path("bench-out"))

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "out"}


def contenders(kind: str) -> tuple[str, ...]:
    """TRL 1.16 has no trainer for PPO."""
    return (OURS,) if kind == PPO else (OURS, PEER)
