"""What the demo measures, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from anyloop.cli.demo.asking import Exchange
from anyloop.cli.demo.evaluation import Evaluation
from anyloop.cli.demo.traffic import Count


@dataclass(frozen=True)
class DemoPlan:
    """How much the demo asks. The defaults fit twelve minutes on two cores."""

    rounds: int = 3
    prompts: int = 320  # per round, over all subtasks; each gets one critique
    eval_prompts: int = 30  # per subtask, held out
    seed: int = 0
    traffic: float = 2.0  # requests per second of other users, all the time
    partial_share: float = 0.2  # critiques of several faults that name only some
    decision_timeout_s: float = 600.0
    samples: int = 2  # side by side, per subtask


@dataclass(frozen=True)
class Swap:
    """One promoted version coming into service.

    `begun` is when the promotion stood in the log, `ended` when the new version first answered (Unix seconds).
    """

    version: str
    begun: float
    ended: float
    stall_seconds: float  # time that no decode step ran, as the replica measured it
    requests: Count  # of the traffic, under way within two seconds of the swap

    @property
    def stall_text(self) -> str:
        """Three digits: a switch of references takes microseconds, a copy milliseconds."""
        return f"{self.stall_seconds * 1000:.3g} ms"


@dataclass(frozen=True)
class Round:
    """`seconds` by phase: ask, feedback, learn (up to the candidate), gate (up to the decision), swap, evaluate."""

    number: int
    asked: int
    right: int
    feedback_events: int
    candidate: str
    state: str  # promoted, rejected, or "no candidate"
    reason: str
    seconds: Mapping[str, float]
    trainer: Mapping[str, Any]  # the trainer's own record of the round
    gate: Mapping[str, Any]  # the gate's report
    swap: Swap | None = None
    evaluation: Evaluation | None = None  # of the promoted version

    @property
    def feedback_used(self) -> int | None:
        """Feedback events that the trainer joined and took into the round, by its own record; None without one."""
        used = self.trainer.get("metrics", {}).get("feedback")
        return None if used is None else int(used)


@dataclass(frozen=True)
class SideBySide:
    """An answer, the critique that was given for it, and the last version's answer to the same prompt."""

    before: Exchange
    critique: str
    after: Exchange


@dataclass(frozen=True)
class Results:
    plan: DemoPlan
    before: Evaluation
    rounds: tuple[Round, ...]
    reasked: tuple[SideBySide, ...]  # prompts whose first answer was wrong, asked again at the end
    traffic: Count
    seconds: Mapping[str, float]  # start, demo, total
    peak_memory_bytes: int
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluations(self) -> list[Evaluation]:
        """The base and each promoted version, in order."""
        return [self.before, *(r.evaluation for r in self.rounds if r.evaluation is not None)]

    @property
    def after(self) -> Evaluation:
        return self.evaluations[-1]

    @property
    def improved(self) -> list[str]:
        """Subtasks that the last version answers better than the base."""
        return [name for name, score in self.after.scores.items() if score.rate > self.before.scores[name].rate]

    @property
    def feedback_used(self) -> int | None:
        """Of all rounds; None when a round has no record of it."""
        used = [r.feedback_used for r in self.rounds]
        return None if None in used else sum(number for number in used if number is not None)

    @property
    def failed_in_swaps(self) -> int:
        return sum(r.swap.requests.failed for r in self.rounds if r.swap)
