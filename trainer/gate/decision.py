"""The gate's decision, as a pure function of two evaluations."""

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.gate.bootstrap import Interval
from trainer.gate.config import GateSettings


@dataclass(frozen=True)
class Decision:
    promote: bool
    reason: str


def decide(
    gain: Interval,
    before: Mapping[str, float],
    after: Mapping[str, float],
    unanswered: float,
    settings: GateSettings,
) -> Decision:
    """Promotes when enough was answered, no subtask fell by more than the bound, and the gain is there and sure enough.

    `before` and `after`: mean success per subtask. `unanswered`: the candidate's share of prompts without an answer.
    """
    if unanswered > settings.max_errors:
        return Decision(False, f"{unanswered:.0%} of the prompts were not answered (at most {settings.max_errors:.0%})")
    # Rounded: success rates are ratios of small counts, and 0.7 - 0.5 must not exceed a bound of 0.2.
    falls = {name: round(before[name] - after.get(name, 0.0), 9) for name in before}
    worst = max(falls, key=lambda name: falls[name], default=None)
    if worst is not None and falls[worst] > settings.subtask_bound:
        return Decision(False, f"{worst} fell by {falls[worst]:.1%} (bound {settings.subtask_bound:.1%})")
    interval = f"{gain.mean:+.1%}, {settings.confidence:.0%} interval [{gain.low:+.1%}, {gain.high:+.1%}]"
    if gain.mean <= settings.min_gain:
        return Decision(False, f"mean gain {interval} is not above {settings.min_gain:+.1%}")
    if gain.low < -settings.max_loss:
        return Decision(False, f"mean gain {interval} is too unsure: it may lose more than {settings.max_loss:.1%}")
    return Decision(True, f"mean gain {interval}")
