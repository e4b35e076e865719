"""`python -m bench.paper`: does the cells that have no result yet, then tables on stdout and `paper.json`.

    python -m bench.paper [--quick] [--jobs 2] [--seeds 0,1,2]   run, or go on with a run that was stopped
    python -m bench.paper plan                                   what would be done
    python -m bench.paper report                                 docs/results.md and its plots, out of paper.json

Exit code 1 when a cell failed (the others go on, and the next run tries it again), 130 after Ctrl-C. A missed target is
a finding, not a failure.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from anyloop.cli.supervisor import handled
from anyloop.config import TINY_OMNI
from anyloop.registry.files import sha256
from bench.paper.document import commit, document
from bench.paper.jobs import Run, Runner
from bench.paper.methods import recipe
from bench.paper.plan import QUICK, Cell, Graph, Plan, fingerprints, graph, wanted
from bench.paper.progress import Board
from bench.paper.report import write
from bench.paper.results import Incomparable
from bench.paper.show import show
from bench.paper.store import InUse, Store, records, write_json
from bench.paper.worker import FUNCTION


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.action == "report":
        return _report(parser, options)
    try:
        plan = _plan(options)
    except ValueError as error:
        parser.error(str(error))
    cells = graph(plan, wanted(plan))
    chosen = [cell for cell in cells if any(fnmatch.fnmatch(cell.id, name) for name in options.only)]
    if options.only and not chosen:
        parser.error(f"no cell is called {' or '.join(options.only)}; `python -m bench.paper plan` lists them")
    store, prints = Store(options.out / plan.name), fingerprints(cells, base_digest())
    if options.action == "plan":
        return _list(cells, store, prints)
    try:
        with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)), store.locked():
            return _run(plan, cells, chosen or wanted(plan), store, prints, options)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (InUse, Incomparable) as error:
        print(error, file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", nargs="?", choices=("run", "plan", "report"), default="run")
    parser.add_argument(
        "--quick", action="store_true", help="fewer seeds, methods, shares of the binary feedback and held-out prompts"
    )
    parser.add_argument("--jobs", type=_positive, default=2, help="cells at a time, each on one thread")
    parser.add_argument("--seeds", help="comma-separated, in place of the plan's")
    parser.add_argument(
        "--only", action="append", default=[], metavar="CELL", help="this cell (* and ? match), and needs"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of every method")
    parser.add_argument(
        "--out", type=Path, default=Path("bench-out/paper"), help="folder of the cells; OUT.json beside it"
    )
    parser.add_argument("--docs", type=Path, help="report: folder of results.md and images/ (docs)")
    parser.add_argument("--function", default=FUNCTION, metavar="MODULE:NAME", help="that does a cell")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _plan(options: argparse.Namespace) -> Plan:
    """Raises ValueError."""
    plan = QUICK if options.quick else Plan()
    if options.seeds:
        seeds = options.seeds.split(",")
        if not all(seed.strip().isdecimal() for seed in seeds):
            raise ValueError(f"--seeds wants whole numbers with commas between them, not {options.seeds!r}")
        plan = replace(plan, seeds=tuple(dict.fromkeys(map(int, seeds))))
    for one in options.set:
        if "=" not in one:
            raise ValueError(f"--set wants NAME=VALUE, not {one!r}")
    return replace(plan, settings=tuple(sorted(tuple(one.split("=", 1)) for one in options.set)))


def _list(cells: Graph, store: Store, prints: Mapping[Cell, str]) -> int:
    done = records(store, prints)
    for cell, wants in cells.items():
        state = f"{done[cell]['seconds']:.0f} s" if cell in done else "to do"
        reads = ", ".join(one.id for one in wants.values())
        print(f"{cell.id:<36} {state:>8}" + (f"   reads {reads}" if reads else ""))
    return 0


def _run(
    plan: Plan,
    cells: Graph,
    chosen: list[Cell],
    store: Store,
    prints: Mapping[Cell, str],
    options: argparse.Namespace,
) -> int:
    console = Console(stderr=True)
    board = Board(console)
    runner = Runner(store, cells, prints, commit=commit(), watcher=board, jobs=options.jobs, function=options.function)
    run = Run()
    try:
        with board.shown(len(graph(plan, chosen)), len(runner.undone(chosen))):
            run = runner.run(chosen)
    finally:
        found = document(plan, cells, records(store, prints), run.failed)
        path = options.out.with_name(f"{options.out.name}.json")
        write_json(path, found)
        write(found, store.root / "results.md", store.root / "images")
    # A table cut at the width of a pipe would say nothing.
    show(found, Console() if sys.stdout.isatty() else Console(width=200))
    print(f"{path} and {store.root / 'results.md'}")
    for cell in run.blocked:
        print(f"not done: {cell.id} needs a cell that failed", file=sys.stderr)
    for cell, why in run.failed.items():
        print(f"failed: {cell.id} {why}", file=sys.stderr)
    return 1 if run.failed else 0


def _report(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    path = options.out.with_name(f"{options.out.name}.json")
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        parser.error(f"there is no {path}: run `python -m bench.paper` first")
    if found["plan"]["name"] != "full" and options.docs is None:
        parser.error(f"{path} is of a {found['plan']['name']} run, and docs/ holds the full one: name another --docs")
    docs = options.docs or Path("docs")
    write(found, docs / "results.md", docs / "images")
    print(docs / "results.md")
    return 0


def base_digest() -> str:
    """Of the weights that every method begins with, and of what the methods have in common."""
    digests = [sha256(path) for path in sorted(TINY_OMNI.rglob("*.safetensors"))]
    return hashlib.sha256(json.dumps([digests, recipe()], sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
