"""What one process of a contender reports."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Result:
    """Seconds and bytes. `samples` and `tokens` (prompt and answer of each sample, without padding) are per step.

    `losses` and `gradient_norms` of all steps, the warm-up included; `phases` are parts of the timed steps.
    """

    contender: str
    kind: str
    samples: int
    tokens: float
    steps_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)  # of the same steps: what a busy machine does not change
    prepare_s: float = 0.0  # what comes once before the steps: the reference's log-probabilities
    phases: dict[str, list[float]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    fixed_loss: float | None = None  # of the online step on rollouts that both sides are given
    fixed_gradient_norm: float | None = None
    base_rss: int = 0  # peak before the work: everything imported, the model loaded once
    peak_rss: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes.

    Not getrusage's: that starts with the size of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def merged(results: Sequence[Result]) -> Result:
    """The repeats of one contender as one: all steps, the median of what comes once, the largest memory."""
    first = results[0]
    return Result(
        contender=first.contender,
        kind=first.kind,
        samples=first.samples,
        tokens=statistics.median(one.tokens for one in results),
        steps_s=[step for one in results for step in one.steps_s],
        cpu_s=[step for one in results for step in one.cpu_s],
        prepare_s=statistics.median(one.prepare_s for one in results),
        phases={name: [step for one in results for step in one.phases[name]] for name in first.phases},
        losses=first.losses,
        gradient_norms=first.gradient_norms,
        fixed_loss=first.fixed_loss,
        fixed_gradient_norm=first.fixed_gradient_norm,
        base_rss=max(one.base_rss for one in results),
        peak_rss=max(one.peak_rss for one in results),
    )
