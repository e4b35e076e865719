"""A cell at work: its inputs, engines and settings, and how a version answers the held-out prompts."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyloop.config import TINY_OMNI
from anyloop.modality import Modality
from anyloop.world import SUBTASKS, tasks
from anyloop.world.pretrain.codecs import load_codecs
from anyloop.world.pretrain.skills import Skills
from anyloop.world.scenes import Split
from anyloop.world.tasks import Judgement, Task
from bench.engine_services import ServingEngine
from bench.paper.plan import Cell
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.publish import stored_weights, write_checkpoint

SLOTS = 128
BEST_OF = 4
# Over the trainer's defaults; chosen on combinations of the gate's split, with a seed of its own (docs/results.md).
SETTINGS: dict[str, Any] = {
    "max_pairs": 100_000,
    "max_fresh": 100_000,
    "fresh_per_prompt": 1,
}
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"dpo_lr": 4e-4, "dpo_epochs": 4},
    "llf-dpo": {"dpo_lr": 2e-4, "dpo_epochs": 2},
}
EVALUATION = 990_001  # of the held-out prompts and the answers to them


@dataclass(frozen=True)
class Logged:
    """A prompt with the answer that was logged, another one, and what people said."""

    prompt: tuple[int, ...]
    modalities: tuple[Modality, ...]
    answer: tuple[int, ...]
    other: tuple[int, ...]
    critique: str  # "" where nobody was asked
    prefers: int  # 1: the answer, -1: the other, 0: neither is better, or nobody was asked


class Work:
    """A cell at work: its inputs, its engines, its settings."""

    def __init__(self, cell: Cell, inputs: dict[str, Path], folder: Path) -> None:
        self.cell, self.inputs, self.folder = cell, inputs, folder
        self.world = World()
        chosen = {**SETTINGS, **OWN.get(cell.kind, {}), **dict(cell.settings), "seed": cell.seed}
        self.settings = TrainerSettings(**chosen)

    @property
    def base(self) -> Path:
        """The policy that the round begins with."""
        return self.inputs["policy" if "policy" in self.inputs else "model"] / "policy"

    @cached_property
    def engine(self) -> ServingEngine:
        engine = ServingEngine(self.base, SLOTS)
        engine.load("base", self.base)
        return engine

    @cached_property
    def critic(self) -> ServingEngine:
        """The critique model that people's words have taught; the careless one for methods without words."""
        folder = self.inputs["critic"] / "critique" if "critic" in self.inputs else self.inputs["model"] / "policy"
        engine = ServingEngine(folder, SLOTS)
        engine.load("critique", folder)
        return engine

    @cached_property
    def skills(self) -> Skills:
        """For turning world media into codes and back; the model of it answers nothing here."""
        return Skills(None, self.engine.sequencer, load_codecs(TINY_OMNI))  # type: ignore[arg-type]

    @cached_property
    def logged(self) -> list[Logged]:
        records = json.loads((self.inputs["answers"] / "answers.json").read_text())
        return [logged_of(one, number < self.cell.annotations) for number, one in enumerate(records)]

    def render(self, task: Task) -> tuple[int, ...]:
        return tuple(self.engine.sequencer.prompt(self.skills.turns(task)))

    def judge(self, task: Task, answer: Sequence[int]) -> Judgement:
        return tasks.judge(task, self.skills.decode(self.engine.sequencer.parse(answer)))

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        write_checkpoint(folder, self.base, stored_weights(self.base, tensors))
        return folder


Choose = Callable[[list[TokenSequence]], list[float]]


def answered(
    work: Work, version: str, split: Split, per_subtask: int, seed: int, score: Choose | None = None
) -> tuple[dict[str, list[float]], str]:
    """Outcomes of a resident version by subtask at temperature 1, and a digest of the prompts, which `split`,
    `per_subtask` and `seed` determine; with `score`, of the best of `BEST_OF` answers."""
    rng = np.random.default_rng([seed, work.cell.seed])
    asked = [tasks.sample(name, split, rng) for name in SUBTASKS for _ in range(per_subtask)]
    prompts = [work.render(task) for task in asked]
    copies = BEST_OF if score else 1
    requests = [
        SampleRequest(prompt, task.modalities, 1.0, 96, seed=seed + BEST_OF * number + copy, version=version)
        for number, (prompt, task) in enumerate(zip(prompts, asked, strict=True))
        for copy in range(copies)
    ]
    answers = [TokenSequence(r.prompt, s.tokens) for r, s in zip(requests, work.engine.generate(requests), strict=True)]
    if score:
        scores = score(answers)
        best = [max(range(at, at + copies), key=scores.__getitem__) for at in range(0, len(answers), copies)]
        answers = [answers[at] for at in best]
    outcomes: dict[str, list[float]] = {}
    for task, answer in zip(asked, answers, strict=True):
        outcomes.setdefault(task.subtask, []).append(float(work.judge(task, answer.answer).ok))
    return outcomes, hashlib.sha256(repr(prompts).encode()).hexdigest()[:16]


def evaluated(work: Work, version: str, metrics: dict[str, Any], score: Choose | None = None) -> dict[str, Any]:
    """What a method returns: held-out outcomes of a resident version."""
    outcomes, prompts = answered(work, version, "heldout", work.cell.evaluate, EVALUATION, score)
    return {"outcomes": outcomes, "prompts": prompts, "settings": work.settings.model_dump(), "metrics": metrics}


def remarks(critique: ServingEngine, answers: Sequence[TokenSequence]) -> list[str]:
    """What a critique model says of answers."""
    sequencer = critique.sequencer
    prompts = [
        tuple(sequencer.critique_prompt(sequencer.parse_prompt(one.prompt), sequencer.parse(one.answer)))
        for one in answers
    ]
    said = critique.generate([SampleRequest(prompt, (Modality.TEXT,), 0.0, 96, seed=0) for prompt in prompts])
    return ["".join(part for part in sequencer.parse(one.tokens) if isinstance(part, str)).strip() for one in said]


def logged_of(record: dict[str, Any], annotated: bool) -> Logged:
    """A record of `answers.json`; what people said of it is known only where the cell has that annotation."""
    return Logged(
        tuple(record["prompt"]),
        tuple(Modality(name) for name in record["modalities"]),
        tuple(record["answer"]),
        tuple(record["other"]),
        record["critique"] if annotated else "",
        record["prefers"] if annotated else 0,
    )
