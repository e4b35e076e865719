"""An experiment whose outcomes the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable

from anyloop.world import SUBTASKS
from bench.paper.plan import METHODS, Cell, Graph, Plan, graph, wanted
from bench.paper.store import Record

PROMPTS = 20
Rates = Callable[[Cell, str], float]


def experiment(plan: Plan, rate: Rates) -> tuple[Graph, dict[Cell, Record]]:
    """Every cell of the plan done. `rate`: share of a cell's prompts of a subtask that are right, in twentieths."""
    cells = graph(plan, wanted(plan))
    return cells, {cell: record(cell, rate) for cell in cells}


def record(cell: Cell, rate: Rates) -> Record:
    found: Record = {
        "id": cell.id,
        "commit": "c0ffee",
        "seconds": 10.0 if cell.kind in METHODS else 100.0,
        "peak_rss_bytes": 2**30 if cell.kind == "critic" else 2**29,
        "settings": {"dpo_lr": 5e-4} if cell.kind in METHODS else {},
        "metrics": {},
    }
    if cell.kind in METHODS:
        right = {name: round(PROMPTS * rate(cell, name)) for name in SUBTASKS}
        found["outcomes"] = {name: [1.0] * n + [0.0] * (PROMPTS - n) for name, n in right.items()}
        found["subtasks"] = {name: {"right": float(n), "asked": PROMPTS} for name, n in right.items()}
        found["prompts"] = f"prompts of seed {cell.seed}"
    return found


def rates(cell: Cell, subtask: str) -> float:
    """Base 50 %; binary gains 5 points, language 20, a quarter of it 10; each further round 5 more."""
    if cell.kind == "base":
        return 0.5
    if not cell.kind.startswith("llf-"):
        return 0.55
    return 0.6 if cell.annotations < 200 else 0.7 + 0.05 * (cell.round - 1)
