"""One run: every workload, the contenders in turn, each in a process of its own, into one report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench.serving.models import model_directory
from bench.trainer.material import make
from bench.trainer.plan import Plan, Workload, contenders
from bench.trainer.result import Result, merged

TIMEOUT_S = 600.0
NOTE = (
    "Both sides: fp32, one thread, the same model, pairs, prompts and reward function, AdamW with the same schedule "
    "and no clipping; each contender in a process of its own, in turn; the first step warms up and does not count. "
    "DPO: seconds of an update; the reference's log-probabilities, once per pair before, stand beside it. Online: a "
    "turn is generation, reward and update, with us also the new weights' way to the serving engine through a "
    "checkpoint. Losses and gradient norms of DPO are those of each step; online those of one batch of given rollouts, "
    "since two samplers do not draw the same. Memory is the largest resident set (peak), and how much of it is above "
    "that of a process that has imported the same and has loaded the model once. Online answers of tiny-omni differ in "
    "length: with us its grammar holds, TRL samples freely. "
    "TRL 1.16 has no PPO."
)


class ContenderFailed(RuntimeError):
    """A contender's process ended without a result."""


def measure(
    plan: Plan, say: Callable[[str], None], keep: Callable[[dict[str, Any]], None] = lambda report: None
) -> dict[str, Any]:
    """The report. A contender that fails stands in `errors`, and the others go on.

    `keep` gets it after every workload, as far as it is.
    """
    began = time.time()
    rows: list[dict[str, Any]] = []
    errors: list[dict[str, str]] = []
    for workload in plan.workloads:
        say(f"{workload.model}: making pairs, prompts and rollouts")
        model = model_directory(workload.model, plan.out / "models").absolute()
        material = (plan.out / "trainer" / f"{workload.model}.json").absolute()
        material.parent.mkdir(parents=True, exist_ok=True)
        make(workload, model).save(material)
        for kind in plan.kinds:
            found: dict[str, list[Result]] = {name: [] for name in contenders(kind)}
            for repeat in range(plan.repeats):
                for name in found:
                    say(f"{workload.model}: {kind} of {name}, {repeat + 1} of {plan.repeats}")
                    try:
                        found[name].append(run_contender(name, kind, model, material, workload))
                    except ContenderFailed as error:
                        errors.append({"model": workload.model, "contender": name, "kind": kind, "error": str(error)})
            rows += [{"model": workload.model} | merged(results).to_json() for results in found.values() if results]
        report = {
            "note": NOTE,
            "environment": environment(),
            "plan": plan.to_json(),
            "rows": rows,
            "errors": errors,
            "seconds": time.time() - began,
        }
        keep(report)
    return report


def run_contender(contender: str, kind: str, model: Path, material: Path, workload: Workload) -> Result:
    """Runs it in a process of its own. Raises ContenderFailed."""
    job = {
        "contender": contender,
        "kind": kind,
        "model": str(model),
        "material": str(material),
        "workload": asdict(workload),
    }
    try:
        process = subprocess.run(
            [sys.executable, "-m", "bench.trainer.worker", json.dumps(job)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ContenderFailed(f"no result after {TIMEOUT_S:.0f} s") from error
    if process.returncode:
        raise ContenderFailed(f"exit code {process.returncode}: {process.stderr.strip()[-2000:]}")
    try:
        return Result(**json.loads(process.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError) as error:
        raise ContenderFailed(f"no result in its output: {process.stdout.strip()[-500:]!r}") from error


def environment() -> dict[str, Any]:
    packages = ("transformers", "trl", "accelerate")
    return (
        {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "threads": 1,
        }
        | {name: version(name) for name in packages}
        | {"torch": torch.__version__}
    )
