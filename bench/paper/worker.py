"""One cell in a process of its own: `python -m bench.paper.worker JOB.json`, started by the runner.

Its peak memory is then the cell's, and whatever ends it ends no other cell.
"""

from __future__ import annotations

import importlib
import json
import math
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anyloop.world import SUBTASKS
from bench.paper.plan import METHODS, Cell
from bench.paper.store import write_json

RunCell = Callable[[Cell, dict[str, Path], Path], dict[str, Any]]
FUNCTION = "bench.paper.methods:run_cell"


class BadOutcomes(Exception):
    """What the function of the cells returned is not what the tables need."""


def main(arguments: list[str]) -> int:
    job = json.loads(Path(arguments[0]).read_text())
    cell = Cell.from_json(job["cell"])
    module, _, name = job["function"].partition(":")
    run_cell: RunCell = getattr(importlib.import_module(module), name)
    folder = Path(job["folder"])
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that did not end
    folder.mkdir(parents=True)
    began = time.monotonic()
    returned = run_cell(cell, {role: Path(path) for role, path in job["inputs"].items()}, folder)
    record = {
        "id": cell.id,
        "cell": cell.to_json(),
        "fingerprint": job["fingerprint"],
        "needs": job["needs"],
        "commit": job["commit"],
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": time.monotonic() - began,
        "peak_rss_bytes": peak_rss_bytes(),
        "settings": plain(returned.get("settings", {})),
        "metrics": plain(returned.get("metrics", {})),
        **outcomes(cell, returned),
    }
    write_json(Path(job["result"]), record)
    return 0


def outcomes(cell: Cell, returned: Mapping[str, Any]) -> dict[str, Any]:
    """`outcomes`: of every subtask, how right each held-out prompt was answered, 0-1, always in the same order;
    `prompts`: a digest of these prompts, by which answers to other prompts are never compared with these.

    Raises BadOutcomes.
    """
    if cell.kind not in METHODS:
        return {}
    found = returned.get("outcomes")
    if not isinstance(found, Mapping) or set(found) != set(SUBTASKS):
        raise BadOutcomes(f"{cell.id}: outcomes of {', '.join(SUBTASKS)} are wanted, got {found!r:.200}")
    for subtask, values in found.items():
        if len(values) != cell.evaluate:
            raise BadOutcomes(f"{cell.id}: {cell.evaluate} prompts of {subtask} are wanted, got {len(values)}")
        if not all(0 <= value <= 1 for value in values):
            raise BadOutcomes(f"{cell.id}: an outcome of {subtask} is not in 0-1")
    if not returned.get("prompts"):
        raise BadOutcomes(f"{cell.id}: the digest of the held-out prompts is missing")
    return {
        "prompts": str(returned["prompts"]),
        "subtasks": {name: {"right": float(sum(found[name])), "asked": len(found[name])} for name in SUBTASKS},
        "outcomes": {name: [float(value) for value in found[name]] for name in SUBTASKS},
    }


def plain(value: Any) -> Any:
    """As JSON has it: numbers of numpy and torch as Python's, what is not finite as null, the rest by its name."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if not isinstance(value, str | int | float | None) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | None) else str(value)


def peak_rss_bytes() -> int:
    """Of this process. The kernel's count for `getrusage` also holds what the parent had when it forked."""
    try:
        status = Path("/proc/self/status").read_text()
    except FileNotFoundError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
