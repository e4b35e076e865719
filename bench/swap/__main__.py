"""`python -m bench.swap`: one table on stdout, `swap.json` under `--out`.

Exit code 1 when an answer was dropped or garbled. A missed target of the stall is a finding, not a failure.
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
from bench.swap.run import Plan, measure
from bench.swap.table import failed, show


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.swap", description="swaps of weights under running streams")
    parser.add_argument("--models", default=",".join(Plan.models), help=f"comma-separated, of {', '.join(NAMES)}")
    parser.add_argument("--streams", type=int, default=Plan.streams, help="concurrent clients")
    parser.add_argument("--swaps", type=int, default=Plan.swaps, help="changes of weights in each mode")
    parser.add_argument("--modes", default=",".join(Plan.modes), help="comma-separated swap modes")
    parser.add_argument("--in-process", action="store_true", help="leave Triton and the policy service out")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the report and the models")
    options = parser.parse_args(arguments)
    plan = Plan(
        models=tuple(options.models.split(",")),
        modes=tuple(options.modes.split(",")),
        hosts=Plan.hosts[:1] if options.in_process else Plan.hosts,
        streams=options.streams,
        swaps=options.swaps,
        out=options.out,
    )
    if unknown := sorted(set(plan.models) - set(NAMES)) + sorted(set(plan.modes) - set(Plan.modes)):
        parser.error(f"no such model or mode: {', '.join(unknown)}")
    progress = Console(stderr=True)
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), progress.status("") as status:
            report = measure(plan, status.update)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "swap.json").write_text(json.dumps(report, indent=1) + "\n")
    # A table cut at the width of a pipe would say nothing.
    show(report, Console() if sys.stdout.isatty() else Console(width=250))
    return 1 if failed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
