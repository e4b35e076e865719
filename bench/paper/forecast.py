"""In which order cells are best done, and how long they will take yet: pure arithmetic on what others took."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from statistics import mean

from bench.paper.plan import Cell, Graph


def costs(cells: Collection[Cell], known: Mapping[Cell, float]) -> dict[Cell, float] | None:
    """Seconds of each cell: its own where known, else the mean of its kind, else of all. None: nothing is known yet."""
    if not known:
        return None
    kinds: dict[str, list[float]] = {}
    for cell, seconds in known.items():
        kinds.setdefault(cell.kind, []).append(seconds)
    everything = mean(known.values())
    return {cell: known.get(cell, mean(kinds.get(cell.kind, [everything]))) for cell in cells}


def ranked(graph: Graph, cells: Collection[Cell], seconds: Mapping[Cell, float]) -> list[Cell]:
    """Seed by seed, so that whole seeds are there early; within one the longest chain of work first. `graph` in its own
    order: what is needed first."""
    chain = {cell: seconds[cell] for cell in cells}
    for cell in reversed(list(graph)):
        if cell in chain:
            for one in graph[cell].values():
                if one in chain:
                    chain[one] = max(chain[one], seconds[one] + chain[cell])
    seeds = {seed: at for at, seed in enumerate(dict.fromkeys(cell.seed for cell in graph))}
    return sorted(chain, key=lambda cell: (seeds[cell.seed], -chain[cell]))


def seconds_left(
    graph: Graph, waiting: Collection[Cell], running: Mapping[Cell, float], seconds: Mapping[Cell, float], jobs: int
) -> float:
    """Until the last cell has ended, by doing them on paper. `running`: seconds that each has run so far; one that runs
    longer than expected is taken to end now."""
    clock = 0.0
    ends = {cell: max(0.0, seconds[cell] - since) for cell, since in running.items()}
    left = ranked(graph, waiting, seconds)
    pending = {*left, *ends}
    while pending:
        ready = [cell for cell in left if pending.isdisjoint(graph[cell].values())]
        for cell in ready[: max(0, jobs - len(ends))]:
            left.remove(cell)
            ends[cell] = clock + seconds[cell]
        first = min(ends, key=ends.__getitem__)
        clock = ends.pop(first)
        pending.remove(first)
    return clock
