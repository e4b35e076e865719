"""One run: every model, every contender after the other on the same machine, into one report."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from anyloop.cli.exits import CommandError
from bench.serving.contenders import Bench, Points, Say
from bench.serving.models import model_directory
from bench.serving.plan import ENGINE, MODES, PEER, SERIAL_PEER, STACK, TRITON, Plan
from bench.serving.processes import ContenderFailed
from bench.serving.targets import targets

NOTE = (
    "A token arrives when the message that carries it does: tokens that arrive together have gaps of 0 between them "
    "(inter-token latency); the gaps between messages stand beside it. A message is whatever one read of the client "
    "brought. Tokens of a message are shared out by its characters, which is exact for the random models. Time to the "
    "first token counts from the request on an open connection. Memory is the largest PSS of the contender's process "
    "tree. The client runs on the same cores, in a process of its own; in process there is none. The whole stack is "
    "Triton with the policy model alone, policy service and gateway. What the gateway adds: a client of the policy "
    "service reads protobuf messages, one of the gateway the first bytes of its stream. Every process computes on one "
    "thread; the parts of the whole stack are several processes."
)


def measure(plan: Plan, say: Say) -> dict[str, Any]:
    """The report. A contender that fails stands in `errors`, and the others go on."""
    began = time.time()
    report: dict[str, Any] = {
        "note": NOTE,
        "environment": _environment(),
        "plan": _plan(plan),
        "models": {},
        "errors": [],
    }
    for name in plan.models:
        report["models"][name] = _measure_model(plan, name, report["errors"], say)
    report["targets"] = [target.to_json() for target in targets(report["models"])]
    report["seconds"] = time.time() - began
    return report


def _measure_model(plan: Plan, name: str, errors: list[dict[str, str]], say: Say) -> dict[str, Any]:
    directory = model_directory(name, plan.out / "models").absolute()
    scratch = (plan.out / "serving" / name).absolute()
    shutil.rmtree(scratch, ignore_errors=True)
    bench = Bench(plan, name, directory, scratch, say)
    contenders: dict[str, dict[str, Points]] = {PEER: {}, ENGINE: {}, TRITON: {}, STACK: {}}
    report: dict[str, Any] = {"directory": name, "contenders": contenders, "checks": {}}

    def attempt(contender: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (ContenderFailed, CommandError, OSError) as error:
            errors.append({"model": name, "contender": contender, "error": str(error)})
            say(f"{name}: {contender} failed: {error}")

    def peer(mode: str) -> Callable[[], None]:
        def run() -> None:
            contenders[PEER][mode], checks = bench.peer(mode)
            report["checks"].setdefault(PEER, {}).update(checks)

        return run

    def engine() -> None:
        contenders[ENGINE], report["engine"] = bench.engine()

    def stack() -> None:
        contenders[TRITON], contenders[STACK], found = bench.stack()
        report["gateway"] = found["gateway"]
        report["checks"][STACK] = found["checks"]

    def floors() -> None:
        report["floors"] = bench.floors()

    def serial_peer() -> None:
        contenders[SERIAL_PEER] = {"greedy": bench.serial_peer()}

    for mode in MODES:
        attempt(f"{PEER}, {mode}", peer(mode))
    if plan.serial_peer and name == "llama-7m":
        attempt(SERIAL_PEER, serial_peer)
    attempt(STACK, stack)
    attempt(ENGINE, engine)
    attempt("floors", floors)
    report["checks"]["greedy answers equal to transformers serve's"] = (
        _agreement(contenders) if name != "tiny-omni" else None
    )
    for contender, modes in contenders.items():
        for points in modes.values():
            for streams, point in points.items():
                del point["texts"]
                if point["failed"]:
                    error = f"{point['failed']} answers failed at {streams} streams: {point['error']}"
                    errors.append({"model": name, "contender": contender, "error": error})
    return report


def _agreement(contenders: dict[str, dict[str, Points]]) -> dict[str, float]:
    """Share of greedy answers that are the peer's to the letter: the contenders did the same work."""
    theirs = contenders[PEER].get("greedy", {})
    shares = {}
    for contender in (ENGINE, STACK):
        pairs = [
            (mine, other)
            for streams, point in contenders[contender].get("greedy", {}).items()
            for mine, other in zip(point["texts"], theirs.get(streams, {}).get("texts", ()), strict=False)
        ]
        if pairs:
            shares[contender] = sum(mine == other for mine, other in pairs) / len(pairs)
    return shares


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "models": list(plan.models),
        "streams": list(plan.streams),
        "requests_per_client": plan.requests,
        "max_tokens": plan.max_tokens,
        "sampling": MODES,
    }


def _environment() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    return {
        "cpu": next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine()
        ),
        "cores": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "python": platform.python_version(),
        "threads_per_process": 1,
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: version(name) for name in ("torch", "transformers", "tritonclient", "grpcio")},
    }
