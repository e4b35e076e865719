"""Stands for `bench.paper.methods`: cells that take no time, with the failures that the runner must live with.

A cell's folder gets `made` (how often it was done in `TRACE`, one line a time) and what its needs said of themselves.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from anyloop.world import SUBTASKS
from bench.paper.plan import METHODS, Cell

_GAIN = {"dpo": 0.04, "ppo": 0.05, "grpo": 0.05, "best-of-n": 0.03}


def run_cell(cell: Cell, inputs: dict[str, Path], folder: Path) -> dict[str, Any]:
    assert not list(folder.iterdir())
    with Path(os.environ["TRACE"]).open("a") as trace:
        trace.write(f"{cell.id}\n")
    (folder / "name").write_text(cell.id)
    (folder / "read").write_text(" ".join(f"{role}={(path / 'name').read_text()}" for role, path in inputs.items()))
    if cell.id == os.environ.get("FAILS"):
        print("all went well so far")
        raise RuntimeError("the loss is not a number")
    if cell.id == os.environ.get("HANGS"):
        time.sleep(600)
    metrics = {"loss": np.float32(0.5), "worst": float("nan")}
    if cell.kind not in METHODS:
        return {"metrics": metrics}
    return {
        "outcomes": {name: _outcomes(cell, name) for name in SUBTASKS},
        "prompts": f"prompts of seed {cell.seed}",
        "settings": {"lr": 2e-4, "epochs": 2},
        "metrics": metrics,
    }


def _outcomes(cell: Cell, subtask: str) -> list[float]:
    """Answers of one seed and subtask are right where a number of the prompt's lies below the method's rate."""
    rng = np.random.default_rng([cell.seed, SUBTASKS.index(subtask)])
    numbers = rng.random(cell.evaluate)
    gain = 0.0
    if cell.kind != "base":
        name = cell.kind.removeprefix("llf-")
        gain = _GAIN[name] * (4 if cell.kind.startswith("llf-") else 1) * (cell.annotations / 400) ** 0.5
        gain += 0.05 * (cell.round - 1)
    return [float(number < 0.5 + gain) for number in numbers]
