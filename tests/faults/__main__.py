"""`python -m tests.faults`: breaks the running loop in every way we know, and compares what people were told with what
the log holds and with what was learned. One table at the end, `faults.json` under `--out`; exit code 1 on a violation.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported anywhere below

from rich.console import Console
from transformers.utils import logging as transformers_logging

from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import handled
from tests.faults.event_log import KafkaLog, LogUnderTest, SqliteLog
from tests.faults.report import document, table
from tests.faults.run import Row, Runner
from tests.faults.scenarios import ALL, QUICK, Scenario
from tests.faults.stack import Stack
from tests.models.random_omni import build_random_omni

# Beyond Linux's ephemeral ports: what a killed service listened on must not become somebody's outgoing connection.
_PORT_OFFSET = 11200


def main(arguments: list[str] | None = None) -> int:
    """0 when everything holds, 1 on a violation, 130 after Ctrl-C."""
    options = _options(arguments)
    console = Console(stderr=True)
    scenarios = _chosen(options)
    if not scenarios:
        console.print(f"Nothing to do: none of these faults applies to the {options.log} log.")
        return 2
    rows: list[Row] = []
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
            run_all(scenarios, options, console, rows)
    except KeyboardInterrupt:
        console.print("stopped")
        return 130
    except CommandError as error:
        console.print(f"[red]{error}[/]", highlight=False)
        return 1
    finally:
        if rows:
            _write(rows, options)
    return 0 if all(row.clean for row in rows) else 1


def run_all(scenarios: Sequence[Scenario], options: argparse.Namespace, console: Console, rows: list[Row]) -> None:
    """One stack serves scenario after scenario, until one leaves it in doubt or needs other disks."""
    work = options.out / "faults"
    shutil.rmtree(work, ignore_errors=True)
    transformers_logging.disable_progress_bar()
    model = build_random_omni(work / "model")
    log: LogUnderTest = SqliteLog() if options.log == "sqlite" else KafkaLog(work / "broker")
    with log, ExitStack() as current:
        stack: Stack | None = None
        for number, scenario in enumerate(scenarios):
            if stack is not None and (not rows[-1].clean or scenario.small_disks != bool(stack.disks)):
                current.close()
                stack = None
            if stack is None:
                console.print(f"starting the services ({options.host}, {options.log})", highlight=False)
                stack = Stack(
                    (work / f"home-{number}").absolute(),
                    model,
                    log,
                    host=options.host,
                    port_offset=options.port_offset,
                    small_disks=scenario.small_disks,
                )
                current.enter_context(stack)
            row = Runner(stack, log, lambda text: console.print(f"  {text}", highlight=False)).run(
                scenario, seed=number
            )
            rows.append(row)
            console.print(
                f"{scenario.name}: " + ("[green]holds[/]" if row.clean else "[red]does not hold[/]"), highlight=False
            )
            for violation in row.findings.violations:
                console.print(f"  {violation}", style="red", highlight=False, markup=False)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    names = ", ".join(scenario.name for scenario in ALL)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"again for more; of {names}")
    parser.add_argument("--quick", action="store_true", help="one broker kill and one policy kill")
    parser.add_argument("--log", choices=("kafka", "sqlite"), default="kafka")
    parser.add_argument("--host", choices=("inprocess", "triton"), default="inprocess", help="where the models run")
    parser.add_argument("--port-offset", type=int, default=_PORT_OFFSET, help="added to every port")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of faults.json, homes and logs")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.only) - {scenario.name for scenario in ALL}):
        parser.error(f"no such fault: {', '.join(unknown)}; there are {names}")
    quick = [scenario.name for scenario in QUICK]
    if options.quick and (slow := sorted(set(options.only) - set(quick))):
        parser.error(f"--quick has only {', '.join(quick)}; leave it out for {', '.join(slow)}")
    return options


def _chosen(options: argparse.Namespace) -> list[Scenario]:
    every = QUICK if options.quick else ALL
    return [
        scenario
        for scenario in every
        if options.log in scenario.logs and (not options.only or scenario.name in options.only)
    ]


def _write(rows: Sequence[Row], options: argparse.Namespace) -> None:
    environment: dict[str, Any] = {
        "log": options.log,
        "host": options.host,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }
    (options.out / "faults.json").write_text(json.dumps(document(rows, environment), indent=1) + "\n")
    # A table cut at the width of a pipe would say nothing.
    (Console() if sys.stdout.isatty() else Console(width=220)).print(table(rows))


if __name__ == "__main__":
    sys.exit(main())
