"""What one run measures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.serving.models import NAMES

GREEDY: dict[str, Any] = {"temperature": 0.0}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_p": 0.9}
MODES = {"greedy": GREEDY, "sampled": SAMPLED}

PEER = "transformers serve"
SERIAL_PEER = "transformers serve, default mode"
ENGINE = "AnyLoop engine in process"
TRITON = "AnyLoop through Triton"
STACK = "AnyLoop whole stack"


@dataclass(frozen=True)
class Plan:
    models: tuple[str, ...] = NAMES
    streams: tuple[int, ...] = (1, 8, 32)
    requests: int = 3  # by each client at a point; one client alone asks twice as often
    max_tokens: int = 64
    gateway_requests: int = 12  # by each of eight clients, in each of the rounds
    gateway_rounds: int = 4  # through the gateway and past it, in turn
    profile_steps: int = 40
    serial_peer: bool = True  # also the peer's default mode, on llama-7m
    out: Path = Path("bench-out")

    def prompts(self, streams: int) -> int:
        return streams * self.requests * (2 if streams == 1 else 1)

    @property
    def most(self) -> int:
        return max(self.streams)


def quick(plan: Plan) -> Plan:
    """Under a minute for one small model: for development, and for the tests."""
    return Plan(
        models=plan.models,
        streams=plan.streams,
        requests=1,
        max_tokens=32,
        gateway_requests=4,
        gateway_rounds=1,
        profile_steps=10,
        serial_peer=False,
        out=plan.out,
    )
