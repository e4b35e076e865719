"""`python -m bench.trainer`: one table on stdout, `trainer.json` under `--out`.

With `--round`, instead: how long a round took from its last feedback to the new weights in service, by phase, read from
a trainer's `rounds.jsonl`. Exit code 1 when a side failed or the two did not compute the same.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

# Before torch is imported anywhere below.
os.environ["OMP_NUM_THREADS"] = "1"

from rich.console import Console

from anyloop.cli.supervisor import handled
from bench.trainer.plan import KINDS, QUICK, WORKLOADS, Plan
from bench.trainer.rounds import read_rounds, show_rounds
from bench.trainer.run import measure
from bench.trainer.table import failed, show


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.trainer", description="our training steps beside TRL's")
    parser.add_argument("--models", default=",".join(WORKLOADS), help=f"comma-separated, of {', '.join(WORKLOADS)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"comma-separated, of {', '.join(KINDS)}")
    parser.add_argument("--repeats", type=int, default=Plan.repeats, help="processes of each contender")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny batch, to see that it runs; its figures say little"
    )
    parser.add_argument(
        "--round",
        type=Path,
        metavar="FILE",
        help="a rounds.jsonl, or a folder with one in it: print its rounds by phase, and measure nothing",
    )
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the report and the models")
    options = parser.parse_args(arguments)
    # A table cut at the width of a pipe would say nothing.
    console = Console() if sys.stdout.isatty() else Console(width=250)
    if options.round is not None:
        try:
            show_rounds(read_rounds(options.round), console)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
        return 0
    models, kinds = options.models.split(","), tuple(options.kinds.split(","))
    if unknown := sorted(set(models) - set(WORKLOADS)) + sorted(set(kinds) - set(KINDS)):
        parser.error(f"no such model or kind: {', '.join(unknown)}")
    workloads = (QUICK,) if options.quick else tuple(WORKLOADS[name] for name in models)
    plan = Plan(workloads, kinds, 1 if options.quick else options.repeats, options.out)
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), Console(stderr=True).status("") as status:
            report = measure(plan, status.update, lambda found: write(plan.out, found))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    show(report, console)
    return 1 if failed(report) else 0


def write(folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
