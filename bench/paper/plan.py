"""What the experiment computes: its cells, what each of them needs, and the plans of a full and of a quick run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

# What a cell of each kind reads: role -> the kind of cell that wrote it. From the second round on every cell also reads
# `policy`, the weights that the round before ended with; the critique model goes on from `previous`, and the line's
# method mixes in pairs of the round before, `earlier`.
# All cells of all seeds read `model`, what every method begins with.
SHARED: dict[str, tuple[str, ...]] = {
    "model": (),  # tiny-omni, its critiques made careless
    "answers": (),  # the policy's answers to the seed's prompts, each annotated in both ways
    "reward": ("answers",),  # reward model of the binary preferences
    "critic": ("answers",),  # critique model of the critiques
    "pairs": ("answers", "critic"),  # refined over original
    "llf-reward": ("critic", "pairs"),  # reward model of those pairs
}
METHODS: dict[str, tuple[str, ...]] = {
    "base": (),
    "dpo": ("answers",),
    "ppo": ("answers", "reward"),
    "grpo": ("answers", "reward"),
    "best-of-n": ("reward",),
    "llf-dpo": ("answers", "critic", "pairs"),
    "llf-ppo": ("answers", "critic", "llf-reward"),
    "llf-grpo": ("answers", "critic", "llf-reward"),
    "llf-best-of-n": ("critic",),
}
KINDS = SHARED | METHODS
COUNTERPART = {name: name.removeprefix("llf-") for name in METHODS if name.startswith("llf-")}


@dataclass(frozen=True)
class Cell:
    """One piece of work: a method with a seed and a number of human annotations, or work that methods share.

    Two cells with the same `seed` see the same prompts, answers, annotations and held-out prompts.
    """

    kind: str
    seed: int
    annotations: int = 0  # of people; of `answers`: how many it makes. Others use the first so many of these
    prompts: int = 0  # of `answers`: how many it answers, annotated or not
    round: int = 1
    line: str = ""  # from the second round on: the method whose rounds these are
    evaluate: int = 0  # held-out prompts per subtask; 0: the cell has no outcomes
    settings: tuple[tuple[str, str], ...] = ()  # of the trainer, over the method's own

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no such kind of cell: {self.kind}; there are {', '.join(KINDS)}")

    @property
    def id(self) -> str:
        line = [self.line] if self.line not in ("", self.kind) else []
        rounds = [f"r{self.round}"] if self.round > 1 else []
        return ".".join([*line, self.kind, f"n{self.annotations}", f"s{self.seed}", *rounds])

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": dict(self.settings)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Cell:
        return cls(**{**stored, "settings": tuple(sorted(stored["settings"].items()))})


Graph = Mapping[Cell, Mapping[str, Cell]]  # what each cell needs, by role; what is needed stands first


@dataclass(frozen=True)
class Plan:
    """The size of one run. Shares are of `annotations`; 1.0 of each is what the main table compares."""

    name: str = "full"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    annotations: int = 80
    prompts: int = 640  # logged answers of a round, of which so many are annotated; every method may use all prompts
    methods: tuple[str, ...] = tuple(METHODS)[1:]
    ablated: tuple[str, ...] = ("llf-dpo",)  # by share of language feedback, and their counterparts by share of binary
    # 0 is the control: what self-improving brings without a word of people's.
    language_shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 2.0, 4.0)
    binary_shares: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    rounds: int = 4
    line: str = "llf-dpo"  # the method of the rounds
    evaluate: int = 100
    settings: tuple[tuple[str, str], ...] = field(default=())

    def __post_init__(self) -> None:
        for name in (*self.methods, *self.ablated, self.line):
            if name not in METHODS:
                raise ValueError(f"no such method: {name}; there are {', '.join(METHODS)}")
        for name in self.ablated:
            if name not in COUNTERPART:
                raise ValueError(f"{name} has no binary counterpart to be ablated against")
        if not self.seeds or min(self.annotations, self.rounds, self.evaluate) < 1:
            raise ValueError("a plan needs a seed, and at least one annotation, round and held-out prompt per subtask")
        if self.prompts < self.most:
            raise ValueError(f"{self.most} annotations of {self.prompts} prompts: each annotates an answer of its own")
        for share in self.language_shares:
            if share < 0:
                raise ValueError(f"a share of the language feedback is 0 or more, not {share}")
        for share in self.binary_shares:
            if share <= 0:
                raise ValueError(f"a share of the annotations is above 0, not {share}")

    def count(self, share: float) -> int:
        return round(share * self.annotations)

    @property
    def most(self) -> int:
        """Annotations that some cell of the first round uses; all have the same first ones."""
        return max(map(self.count, (1.0, *self.language_shares, *self.binary_shares)))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": dict(self.settings)}


QUICK = Plan(
    name="quick",
    seeds=(0, 1, 2),
    methods=("dpo", "ppo", "best-of-n", "llf-dpo", "llf-ppo", "llf-best-of-n"),
    binary_shares=(0.5, 1.0, 2.0, 4.0),
    evaluate=60,
)


def wanted(plan: Plan) -> list[Cell]:
    """What the tables show, seed by seed; what it needs comes in by `graph`."""
    cells: list[Cell] = []
    for seed in plan.seeds:
        cells += [_cell(plan, "base", seed, 0)]
        cells += [_cell(plan, name, seed, plan.annotations) for name in plan.methods if name != "base"]
        for name in plan.ablated:
            cells += [_cell(plan, name, seed, plan.count(share)) for share in plan.language_shares]
            cells += [_cell(plan, COUNTERPART[name], seed, plan.count(share)) for share in plan.binary_shares]
        cells += [_cell(plan, plan.line, seed, plan.annotations, number) for number in range(1, plan.rounds + 1)]
    return list(dict.fromkeys(cells))


def needs(plan: Plan, cell: Cell) -> dict[str, Cell]:
    """What a cell reads, by role."""
    found = {role: _cell(plan, role, cell.seed, cell.annotations, cell.round, cell.line) for role in KINDS[cell.kind]}
    if cell.kind != "model":
        found["model"] = Cell("model", 0)
    if cell.round > 1:
        before = cell.round - 1
        found["policy"] = _cell(plan, cell.line, cell.seed, cell.annotations, before, cell.line)
        if cell.kind == cell.line and "pairs" in found:
            found["earlier"] = _cell(plan, "pairs", cell.seed, cell.annotations, before, cell.line)
        if cell.kind == "critic":
            found["previous"] = _cell(plan, "critic", cell.seed, cell.annotations, before, cell.line)
    return found


def graph(plan: Plan, cells: Iterable[Cell]) -> Graph:
    """The cells and all that they need, directly or not."""
    found: dict[Cell, dict[str, Cell]] = {}

    def add(cell: Cell) -> None:
        if cell not in found:
            wants = needs(plan, cell)
            for one in wants.values():
                add(one)
            found[cell] = wants

    for cell in cells:
        add(cell)
    return found


def fingerprints(cells: Graph, base: str) -> dict[Cell, str]:
    """What a stored result must carry to be a cell's: changes with the cell, with the base's weights (their digest)
    and with anything it builds on."""
    found: dict[Cell, str] = {}
    for cell, wants in cells.items():
        parts = [cell.to_json(), base, {role: found[one] for role, one in wants.items()}]
        found[cell] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
    return found


def _cell(plan: Plan, kind: str, seed: int, annotations: int, number: int = 1, line: str = "") -> Cell:
    whose = (line or plan.line) if number > 1 else ""
    cell = Cell(kind, seed, annotations, round=number, line=whose, settings=plan.settings)
    if kind == "answers" and number == 1:
        cell = replace(cell, annotations=plan.most)
    if kind == "answers":
        cell = replace(cell, prompts=plan.prompts)
    return replace(cell, evaluate=plan.evaluate) if kind in METHODS else cell
