"""The outcomes of the cells, paired: what methods of one seed made of the same held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyloop.world import SUBTASKS
from bench.paper.intervals import Values, estimates
from bench.paper.plan import Cell
from bench.paper.store import Record

GENERATION = ("TI2TI", "T2I", "T2A", "T2V")  # answers with a picture, a sound or a video
UNDERSTANDING = tuple(name for name in SUBTASKS if name not in GENERATION)  # answers in words
GROUPS = {"mean": SUBTASKS, "generation": GENERATION, "understanding": UNDERSTANDING}

Records = Mapping[Cell, Record]
Figures = dict[str, dict[str, Any]]  # by subtask and by group: an `Estimate`


class Incomparable(Exception):
    """Two methods of a seed answered other held-out prompts."""


@dataclass(frozen=True)
class Arm:
    """What is compared: a method, how many annotations of people it had, after how many rounds."""

    method: str
    annotations: int
    round: int = 1


BASE = Arm("base", 0)


class Results:
    """The records that have outcomes, by arm and seed. A seed that one of two arms lacks is left out of their pair."""

    def __init__(self, records: Records) -> None:
        self._records: dict[Arm, dict[int, Record]] = {}
        for cell, record in records.items():
            if "outcomes" in record:
                arm = Arm(cell.kind, cell.annotations, cell.round)
                self._records.setdefault(arm, {})[cell.seed] = record

    def seeds(self, *arms: Arm) -> list[int]:
        """Those that every arm has."""
        found = [set(self._records.get(arm, {})) for arm in arms]
        return sorted(set.intersection(*found)) if found else []

    def prompts(self, arm: Arm) -> int:
        """Held-out prompts per subtask and seed."""
        return max(one["asked"] for record in self._records[arm].values() for one in record["subtasks"].values())

    def settings(self, arm: Arm) -> dict[str, Any]:
        """Of the first seed: all seeds have the same."""
        return dict(next(iter(self._records[arm].values()))["settings"])

    def success(self, arm: Arm) -> Figures:
        return figures([self._outcomes(arm, seed) for seed in self.seeds(arm)])

    def gain(self, arm: Arm, over: Arm = BASE) -> Figures:
        """How much more often the arm is right than the other, 0-1."""
        return figures(self.differences(arm, over))

    def differences(self, arm: Arm, over: Arm = BASE) -> list[Values]:
        """Of each seed, prompt by prompt. Raises Incomparable."""
        found: list[Values] = []
        for seed in self.seeds(arm, over):
            mine, other = self._records[arm][seed], self._records[over][seed]
            if mine["prompts"] != other["prompts"]:
                both = f"{mine['id']} and {other['id']}"
                raise Incomparable(f"{both} answered different held-out prompts: delete both results and run again")
            left, right = self._outcomes(arm, seed), self._outcomes(over, seed)
            found.append({name: left[name] - right[name] for name in SUBTASKS})
        return found

    def _outcomes(self, arm: Arm, seed: int) -> Values:
        stored = self._records[arm][seed]["outcomes"]
        return {name: np.array(stored[name]) for name in SUBTASKS}


def figures(seeds: Sequence[Values]) -> Figures:
    """Each subtask, and the means of the groups. Empty without seeds."""
    if not seeds:
        return {}
    groups = {name: (name,) for name in SUBTASKS} | GROUPS
    return {name: one.to_json() for name, one in estimates(seeds, groups).items()}


def combined(arms: Sequence[Sequence[Values]], weights: Sequence[float]) -> list[Values]:
    """The weighted sum of several arms' paired values, seed by seed. Each has the same seeds."""
    return [
        {name: sum(weight * one[name] for weight, one in zip(weights, seed, strict=True)) for name in SUBTASKS}
        for seed in zip(*arms, strict=True)
    ]
