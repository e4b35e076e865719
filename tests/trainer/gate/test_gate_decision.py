import numpy as np
import pytest

from trainer.gate.bootstrap import Interval, mean_by_subtask, paired_gain
from trainer.gate.config import GateSettings
from trainer.gate.decision import decide

SETTINGS = GateSettings(min_gain=0.0, max_loss=0.03, subtask_bound=0.2, max_errors=0.02)
SURE = Interval(0.1, 0.02, 0.18)


@pytest.mark.parametrize(
    ("gain", "before", "after", "unanswered", "promote", "reason"),
    [
        (SURE, {"T2I": 0.5}, {"T2I": 0.6}, 0.0, True, "mean gain +10.0%, 90% interval [+2.0%, +18.0%]"),
        (Interval(0.02, -0.03, 0.07), {"T2I": 0.5}, {"T2I": 0.52}, 0.0, True, "mean gain +2.0%"),
        (Interval(0.02, -0.031, 0.07), {"T2I": 0.5}, {"T2I": 0.52}, 0.0, False, "too unsure"),
        (Interval(0.0, 0.0, 0.0), {"T2I": 0.5}, {"T2I": 0.5}, 0.0, False, "not above +0.0%"),
        (Interval(-0.1, -0.2, 0.0), {"T2I": 0.5}, {"T2I": 0.4}, 0.0, False, "not above"),
        (SURE, {"T2I": 0.5, "T2V": 0.7}, {"T2I": 0.9, "T2V": 0.5}, 0.0, True, "mean gain"),
        (SURE, {"T2I": 0.5, "T2V": 0.7}, {"T2I": 0.9, "T2V": 0.49}, 0.0, False, "T2V fell by 21.0% (bound 20.0%)"),
        (SURE, {"T2I": 0.5, "T2V": 0.7}, {"T2I": 0.9}, 0.0, False, "T2V fell by 70.0%"),
        (SURE, {"T2I": 0.5}, {"T2I": 0.6}, 0.02, True, "mean gain"),
        (SURE, {"T2I": 0.5}, {"T2I": 0.6}, 0.03, False, "3% of the prompts were not answered"),
    ],
)
def test_the_decision(gain: Interval, before: dict, after: dict, unanswered: float, promote: bool, reason: str) -> None:
    decision = decide(gain, before, after, unanswered, SETTINGS)
    assert decision.promote is promote
    assert reason in decision.reason


def test_the_gain_is_the_mean_over_subtasks_not_over_prompts() -> None:
    subtasks = ["a"] * 8 + ["b"] * 2
    before, after = [0.0] * 10, [0.0] * 8 + [1.0] * 2
    gain = paired_gain(subtasks, before, after, confidence=0.9, resamples=200)
    assert gain == Interval(0.5, 0.5, 0.5)  # within each subtask all prompts agree, so resampling changes nothing


def test_the_interval_covers_the_normal_approximation() -> None:
    # 400 prompts, gains of +1 (p .3), -1 (p .1), 0: mean .2, sd .6, 90 % half-width 1.645 * .6 / 20 = .0494
    gains = [1.0] * 120 + [-1.0] * 40 + [0.0] * 240
    before = [0.0 if gain > 0 else 1.0 for gain in gains]
    after = [one + gain for one, gain in zip(before, gains, strict=True)]
    gain = paired_gain(["a"] * 400, before, after, confidence=0.9, resamples=4000)
    assert gain.mean == pytest.approx(0.2)
    assert gain.low == pytest.approx(0.2 - 0.0494, abs=0.008)
    assert gain.high == pytest.approx(0.2 + 0.0494, abs=0.008)


def test_pairing_makes_the_interval_narrow_where_versions_agree() -> None:
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 200).astype(float).tolist()
    same = paired_gain(["a"] * 200, before, before, confidence=0.9, resamples=500)
    assert (same.low, same.high) == (0.0, 0.0)


def test_versions_that_answered_different_prompts_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="as many successes"):
        paired_gain(["a"], [0.0], [], confidence=0.9, resamples=100)


def test_means_by_subtask() -> None:
    assert mean_by_subtask(["a", "b", "a"], [1.0, 0.5, 0.0]) == {"a": 0.5, "b": 0.5}
