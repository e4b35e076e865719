"""Held-out success by subtask, measured through REST on answers that are never logged."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anyloop.cli.demo.asking import Exchange, ask_all
from anyloop.cli.rest import GatewayClient
from anyloop.world import SUBTASKS, tasks
from anyloop.world.tasks import Task

Split = Literal["train", "gate", "heldout"]


@dataclass(frozen=True)
class Score:
    """Right answers out of those asked."""

    right: int
    asked: int

    @property
    def rate(self) -> float:
        return self.right / self.asked if self.asked else math.nan


@dataclass(frozen=True)
class Evaluation:
    """Success of one version; `versions` are all that answered (one, when no swap fell into it)."""

    versions: tuple[str, ...]
    scores: Mapping[str, Score]
    exchanges: tuple[Exchange, ...]

    @property
    def mean(self) -> float:
        """Mean over the subtasks, each weighing the same."""
        return float(np.mean([score.rate for score in self.scores.values()]))

    @property
    def standard_error(self) -> float:
        """Of the mean, from the binomial variance of each subtask."""
        variances = [s.rate * (1 - s.rate) / s.asked for s in self.scores.values()]
        return math.sqrt(sum(variances)) / len(variances)


def questions(split: Split, per_subtask: int, seed: int) -> list[tuple[Task, int]]:
    """The same prompts with the same sampling seeds for the same arguments, subtasks interleaved."""
    rng = np.random.default_rng([seed, {"train": 0, "gate": 1, "heldout": 2}[split]])
    asked = [tasks.sample(subtask, split, rng) for _ in range(per_subtask) for subtask in SUBTASKS]
    return [(task, int(rng.integers(2**31))) for task in asked]


def evaluate(
    client: GatewayClient,
    asked: list[tuple[Task, int]],
    on_answer: Callable[[Exchange], None] = lambda exchange: None,
) -> Evaluation:
    """Asks each question once. Raises RequestFailed when one is not answered: a score over fewer would flatter."""
    exchanges = ask_all(client, asked, store=False, on_answer=on_answer)
    versions = tuple(sorted({exchange.reply.version for exchange in exchanges}))
    return Evaluation(versions, scores_of(exchanges), tuple(exchanges))


def scores_of(exchanges: Iterable[Exchange]) -> dict[str, Score]:
    """By subtask, in the order of SUBTASKS; subtasks not asked are left out."""
    by_subtask: dict[str, list[bool]] = {}
    for exchange in exchanges:
        by_subtask.setdefault(exchange.task.subtask, []).append(exchange.judgement.ok)
    return {name: Score(sum(by_subtask[name]), len(by_subtask[name])) for name in SUBTASKS if name in by_subtask}
