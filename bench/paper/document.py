"""The document of one experiment, `paper.json`: tables, verdicts, every cell's result, and where they were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.paper import notes
from bench.paper.plan import Cell, Graph, Plan
from bench.paper.results import Records
from bench.paper.tables import tables
from bench.paper.verdicts import verdicts


def document(plan: Plan, graph: Graph, records: Records, failed: Mapping[Cell, str]) -> dict[str, Any]:
    """Of the results that are there; `missing` names the other cells of the plan."""
    found = tables(plan, graph, records)
    return {
        "plan": plan.to_json(),
        "date": datetime.now(UTC).date().isoformat(),
        "commits": sorted({record["commit"] for record in records.values()}),
        "environment": environment(),
        "commands": commands(plan),
        "how": list(notes.HOW),
        "tuned": list(notes.TUNED),
        "caution": notes.CAUTION,
        "verdicts": verdicts(found),
        **found,
        "missing": [cell.id for cell in graph if cell not in records],
        "failed": {cell.id: why for cell, why in failed.items()},
        "cells": {
            cell.id: {name: value for name, value in record.items() if name != "outcomes"}
            for cell, record in records.items()
        },
    }


def commands(plan: Plan) -> list[str]:
    """That compute and write it again."""
    options = "".join(f" --set {name}={value}" for name, value in plan.settings)
    seeds = ",".join(map(str, plan.seeds))
    if plan.name == "quick":
        return ["make experiment-paper QUICK=1", f"python -m bench.paper --quick --seeds {seeds}{options}"]
    run = f"python -m bench.paper --seeds {seeds}{options}"
    return ["make experiment-paper", run, "python -m bench.paper report"]


def environment() -> dict[str, Any]:
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "cpu": next(names, platform.machine()),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads_per_cell": 1,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
    }


def commit() -> str:
    """Of the working tree; with `-dirty` when tracked files differ from it. `unknown` without git."""
    try:
        shown = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=10"]
        return subprocess.run(shown, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
