"""`python -m bench.serving`: one table on stdout, `serving.json` and `serving.png` under `--out`.

Exit code 1 when a contender failed; its row says why. A missed target is a finding, not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

# Before torch is imported anywhere below.
os.environ["OMP_NUM_THREADS"] = "1"

from rich.console import Console

from anyloop.cli.supervisor import handled
from bench.serving.models import NAMES
from bench.serving.plan import Plan, quick
from bench.serving.plot import draw
from bench.serving.run import measure
from bench.serving.table import show


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description="AnyLoop beside transformers serve")
    parser.add_argument("--models", default=",".join(NAMES), help=f"comma-separated, of {', '.join(NAMES)}")
    parser.add_argument("--streams", default="1,8,32", help="comma-separated numbers of concurrent clients")
    parser.add_argument("--requests", type=int, default=Plan.requests, help="answers per client and point")
    parser.add_argument("--quick", action="store_true", help="a minute per model instead of several: rough figures")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the report and the models")
    options = parser.parse_args(arguments)
    models = tuple(options.models.split(","))
    unknown = sorted(set(models) - set(NAMES))
    if unknown:
        parser.error(f"no such model: {', '.join(unknown)}")
    streams = tuple(int(number) for number in options.streams.split(","))
    plan = Plan(models=models, streams=streams, requests=options.requests, out=options.out)
    progress = Console(stderr=True)
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), progress.status("") as status:
            report = measure(quick(plan) if options.quick else plan, status.update)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serving.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "serving.png")
    # A table cut at the width of a pipe would say nothing.
    show(report, Console() if sys.stdout.isatty() else Console(width=200))
    return 1 if report["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
