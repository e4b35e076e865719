"""The aims of the serving engine against what was measured: pure arithmetic on the report's own figures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bench.serving.plan import ENGINE, PEER, STACK, TRITON

MOST, FEW = "32", "8"  # streams


@dataclass(frozen=True)
class Target:
    """`aim` None: shown beside the others, without an aim."""

    model: str
    name: str
    value: float
    aim: float | None = None
    at_least: bool = True  # or at most
    unit: str = "x"

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.value >= self.aim if self.at_least else self.value <= self.aim

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def targets(models: dict[str, Any]) -> list[Target]:
    """Those whose figures are there; a contender that failed or was not asked for leaves its targets out."""
    found: list[Target] = []
    for name, report in models.items():
        for make in (_against_the_peer, _against_the_floors, _between_the_layers, _sampling_cost):
            found.extend(make(name, report))
    return found


def _against_the_peer(model: str, report: dict[str, Any]) -> Iterator[Target]:
    stack, peer = _point(report, STACK), _point(report, PEER)
    if not (stack and peer):
        return
    ratio = stack["tokens_per_second"] / peer["tokens_per_second"]
    yield Target(model, "whole stack / transformers serve, tokens/s, 32 streams, greedy", ratio, 2.0)
    for key, what in (("itl_p99", "inter-token latency"), ("message_gap_p99", "gap between messages")):
        if stack[key] and peer[key]:
            name = f"whole stack / transformers serve, p99 {what}, 32 streams, greedy"
            yield Target(model, name, stack[key] / peer[key], 1.0, at_least=False)
    stack, peer = _point(report, STACK, mode="sampled"), _point(report, PEER, mode="sampled")
    if stack and peer:
        ratio = stack["tokens_per_second"] / peer["tokens_per_second"]
        yield Target(model, "whole stack / transformers serve, tokens/s, 32 streams, sampled", ratio)


def _against_the_floors(model: str, report: dict[str, Any]) -> Iterator[Target]:
    engine = _point(report, ENGINE)
    floor = report.get("floors", {}).get(MOST)
    if not (engine and floor):
        return
    forward, matmuls = floor["hugging_face_forward"], floor["matmuls"]
    decoding, whole = floor["engine"]["greedy"], engine["tokens_per_second"]
    aim = 0.65 if model == "llama-7m" else None
    name = "in process / Hugging Face forward, decode steps, batch 32"
    yield Target(model, name, decoding / forward["decode"], 1.5)
    name = "in process / matmul floor (torch), decode steps, batch 32"
    yield Target(model, name, decoding / matmuls["mkl"], aim)
    name = "in process / matmul floor (oneDNN, packed), decode steps, batch 32"
    yield Target(model, name, decoding / matmuls["onednn"], aim)
    name = "in process / Hugging Face forward, prompts read on both sides, batch 32"
    yield Target(model, name, whole / forward["with_prompts"])
    name = "in process / matmul floor (faster one), prompts read on both sides, batch 32"
    yield Target(model, name, whole / matmuls["with_prompts"])


def _between_the_layers(model: str, report: dict[str, Any]) -> Iterator[Target]:
    engine, triton = _point(report, ENGINE), _point(report, TRITON)
    if engine and triton:
        ratio = triton["tokens_per_second"] / engine["tokens_per_second"]
        yield Target(model, "Triton / in process, tokens/s, 32 streams, greedy", ratio, 0.9)
    added = report.get("gateway")
    if added:
        value = (added["gateway_ttft_p50"] - added["policy_ttft_p50"]) * 1e3
        yield Target(model, "gateway adds to p50 time to first token, 8 streams", value, 3.0, False, "ms")


def _sampling_cost(model: str, report: dict[str, Any]) -> Iterator[Target]:
    floor = report.get("floors", {}).get(MOST)
    if floor:
        cost = 1 - floor["engine"]["sampled"] / floor["engine"]["greedy"]
        yield Target(model, "exact top-p costs of decode steps in process, batch 32", cost * 100, 15.0, False, "%")


def _point(report: dict[str, Any], contender: str, streams: str = MOST, mode: str = "greedy") -> dict[str, Any] | None:
    point = report.get("contenders", {}).get(contender, {}).get(mode, {}).get(streams)
    return point if point and point.get("tokens_per_second") else None
