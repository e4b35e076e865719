"""`python -m bench.log`: tables on stdout, `log.json` under `--out`.

Exit code 1 when a log holds another number of events than it acknowledged. A missed target is a finding, no failure.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from rich.console import Console

from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import handled
from bench.log.process import Failed
from bench.log.run import Plan, measure
from bench.log.table import failed, show


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.log", description="the event log and its outbox")
    parser.add_argument("--rounds", type=int, default=Plan.rounds, help="of each measurement; the median counts")
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of one measurement of appends")
    parser.add_argument("--batch", type=int, default=Plan.batch, help="events of one append_many")
    parser.add_argument("--outbox-events", type=int, default=Plan.outbox_events, help="put into the outbox")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="answers that end each second")
    parser.add_argument("--answers", type=int, default=Plan.answers, help="of each state of the log")
    parser.add_argument("--out", type=Path, default=Plan.out, help="folder of the report")
    options = parser.parse_args(arguments)
    plan = Plan(**vars(options))
    if min(plan.rounds, plan.seconds, plan.batch, plan.outbox_events, plan.rate, plan.answers) <= 0:
        parser.error("every number must be above 0")
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), Console(stderr=True).status("") as status:
            report = measure(plan, status.update)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (CommandError, Failed) as error:
        print(error, file=sys.stderr)
        return 1
    plan.out.mkdir(parents=True, exist_ok=True)
    (plan.out / "log.json").write_text(json.dumps(report, indent=1) + "\n")
    # A table cut at the width of a pipe would say nothing.
    show(report, Console() if sys.stdout.isatty() else Console(width=250))
    return 1 if failed(report) else 0


if __name__ == "__main__":
    sys.exit(main())
