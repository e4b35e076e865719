"""What 0, 10 and 30 % hostile critiques do to one round of learning, with the robust mode and without it.

    python -m bench.hostile            # three seeds
    python -m bench.hostile --quick    # one seed, 0 and 30 %

Every cell begins from the same base and the same answers of it, asked by the same prompts; honest statements are the
same words in every cell. Success is measured on held-out combinations with the same prompts and sampling seeds.
Writes bench-out/hostile.json after every cell, and goes on where it was interrupted.
"""

import argparse
import json
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from anyloop.config import TINY_OMNI
from bench.engine_services import Checkpoints, ServingEngine
from bench.hostile.annotators import statements, voices
from bench.hostile.plan import Cell, Plan, cells
from bench.hostile.report import show, summary
from bench.hostile.round import learn
from bench.hostile.world import VERSION, Answered, WorldPrompts, joined, success
from trainer.config import TrainerSettings
from trainer.journal import json_safe

OUT = Path("bench-out/hostile.json")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, 0 and 30 %, fewer prompts")
    parser.add_argument("--seeds", type=int, help="how many (3; quick: 1)")
    parser.add_argument("--prompts", type=int, help="annotated answers per round (400; quick: 240)")
    parser.add_argument("--eval", type=int, help="held-out prompts per subtask (60; quick: 40)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the trainer")
    parser.add_argument("--fresh", action="store_true", help="throw away what an earlier run has measured")
    options = parser.parse_args()
    plan = Plan.quick() if options.quick else Plan()
    plan = plan.but(seeds=options.seeds, prompts=options.prompts, per_subtask=options.eval, settings=options.set)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    run(plan, Console(), fresh=options.fresh)


def run(plan: Plan, console: Console, out: Path = OUT, *, fresh: bool = False) -> dict[str, Any]:
    """Runs what `out` does not hold yet, and shows the table."""
    document: dict[str, Any] = {"plan": plan.described(), "cells": []}
    if out.exists() and not fresh:
        earlier = json.loads(out.read_text())
        if earlier["plan"] == document["plan"]:
            document = earlier
    done = {json.dumps(one["cell"], sort_keys=True) for one in document["cells"]}
    left = [cell for cell in cells(plan) if json.dumps(cell.described(), sort_keys=True) not in done]
    world = WorldPrompts(TINY_OMNI)
    engine = ServingEngine(TINY_OMNI)
    engine.load(VERSION, TINY_OMNI)
    answered: dict[int, list[Answered]] = {}
    out.parent.mkdir(exist_ok=True)
    for number, cell in enumerate(left, 1):
        if cell.seed not in answered:
            answered[cell.seed] = world.ask(engine, "train", plan.prompts, 100 + cell.seed)
        began = time.monotonic()
        result = measure(cell, plan, world, engine, answered[cell.seed])
        result["seconds"] = round(time.monotonic() - began, 1)
        document["cells"].append(json_safe(result))
        document["summary"] = summary(document["cells"])
        out.write_text(json.dumps(document, indent=1) + "\n")
        console.print(
            f"{number}/{len(left)} {cell.name}: {100 * result['success']['mean']:.1f} % right in {result['seconds']} s"
        )
    show(document, console)
    return document


def measure(
    cell: Cell, plan: Plan, world: WorldPrompts, base: ServingEngine, answered: list[Answered]
) -> dict[str, Any]:
    """One round in this cell's conditions. The cell `base` learns nothing."""
    held_out = 900 + cell.seed
    count = 8 * plan.per_subtask
    if cell.kind == "base":
        return {"cell": cell.described(), "success": success(world.ask(base, "heldout", count, held_out))}
    speakers = voices(len(answered), cell.share, cell.kind, cell.rng())
    said = statements([(one.task, one.answer, one.judgement) for one in answered], speakers, cell.seed)
    settings = TrainerSettings(
        **({"seed": cell.seed} | plan.overrides() | {"robust_share": cell.stated, "forgetting": "off"})  # type: ignore[arg-type]
    )
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(TINY_OMNI, Path(scratch))
        path, metrics, trust = learn(TINY_OMNI, base, joined(answered, said), settings, checkpoints, cell.seed)
        engine = ServingEngine(TINY_OMNI)
        engine.load(VERSION, path)
        right = success(world.ask(engine, "heldout", count, held_out))
    lies = {f"f{n}" for n, voice in enumerate(speakers) if voice.lies}
    trimmed = {name for name, weight in trust.items() if weight == 0}
    return {
        "cell": cell.described(),
        "success": right,
        "lies": len(lies),
        "trimmed": len(trimmed),
        "trimmed_lies": len(trimmed & lies),
        "lies_left": sum(trust.get(name, 1.0) for name in lies),
        "honest_lost": sum(1 - weight for name, weight in trust.items() if name not in lies),
        "metrics": metrics,
    }


if __name__ == "__main__":
    main()
