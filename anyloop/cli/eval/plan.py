"""What to ask and how to judge it, and what came of it: plain data."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyloop.cli.eval.asking import Answered
from anyloop.evaluation.generation import GenerationReport, Pair
from anyloop.evaluation.intervals import Estimate
from anyloop.evaluation.success import Count, Success
from anyloop.evaluation.understanding import UnderstandingReport

Judge = Literal["world", "critique"]
Split = Literal["train", "gate", "heldout"]


@dataclass(frozen=True)
class Plan:
    """`prompts` is a number for each subtask of the reference world, or a file of one's own. `amu` and `amg` are the
    numbers of items per category and of open prompts per kind; 0 leaves the score out."""

    prompts: int | Path
    split: Split = "heldout"
    seed: int = 0
    samples: int = 1
    temperature: float | None = None
    amu: int = 0
    amg: int = 0
    judge: Judge = "world"


@dataclass(frozen=True)
class Shown:
    """One answer as the page shows it: `verdict` is "right", or what is wrong with it; `words` are the critic's."""

    section: str
    answered: Answered
    ok: bool
    verdict: str
    words: str = ""


@dataclass(frozen=True)
class Chosen:
    """Modality selection on prompts that bring votes: alpha, and how often each set was chosen."""

    selection: Estimate
    choices: Mapping[str, int]


@dataclass(frozen=True)
class Measured:
    """One version. `versions` are all that answered (one, unless a swap fell into it); `scores` holds (group, score in
    0-1) of every prompt by its name, for a comparison; `critic` is the critique model's version, where it judged, and
    `agreement` how often it agreed with the world's exact judge; `synergy` counts pairs of parts that agree, by it."""

    versions: tuple[str, ...]
    success: Success
    scores: Mapping[str, tuple[str, float]]
    shown: tuple[Shown, ...]
    understanding: UnderstandingReport | None = None
    generation: GenerationReport | None = None
    chosen: Chosen | None = None
    synergy: Mapping[Pair, Count] | None = None
    critic: str = ""
    agreement: Count | None = None

    @property
    def name(self) -> str:
        return ", ".join(self.versions)

    @property
    def standard_error(self) -> float:
        """Of the mean, from the binomial variance of each subtask; for one answer per prompt."""
        counts = self.success.subtasks.values()
        variances = [one.share.value * (1 - one.share.value) / one.asked for one in counts]
        return float(sum(variances) ** 0.5 / len(variances))
