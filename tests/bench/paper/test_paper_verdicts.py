from dataclasses import replace

import pytest

from bench.paper.plan import Cell, Plan
from bench.paper.tables import tables
from bench.paper.verdicts import points, times, verdicts
from tests.bench.paper.experiment import Rates, experiment, rates

PLAN = Plan(
    seeds=(0, 1, 2),
    annotations=400,
    language_shares=(0.25, 0.5, 0.75, 1.0),
    binary_shares=(0.25, 0.5, 0.75, 1.0),
    methods=("dpo", "ppo", "llf-dpo", "llf-ppo"),
)


RATIO = "llf-dpo over dpo and llf-ppo over ppo: mean gain at least 3 times"


def found(rate: Rates, plan: Plan = PLAN) -> dict[str, tuple[bool | None, bool | None, str]]:
    rows = verdicts(tables(plan, *experiment(plan, rate)))
    return {row["target"]: (row["met"], row["sure"], row["measured"]) for row in rows}


def of(verdict: dict[str, tuple[bool | None, bool | None, str]], words: str) -> tuple[bool | None, bool | None, str]:
    (name,) = (name for name in verdict if words in name)
    return verdict[name]


def test_the_targets_are_met_where_language_feedback_is_what_the_paper_claims() -> None:
    verdict = found(rates)
    met, _, measured = of(verdict, "llf-dpo: gain over the base in all eight")
    assert met is True
    assert measured.startswith("positive in 8 of 8")
    met, _, measured = of(verdict, RATIO)
    assert met is True
    assert measured.startswith("llf-dpo 4.00 x [")
    assert "; llf-ppo 4.00 x [" in measured
    assert of(verdict, "moonshot")[0] is False  # 4 times, not 5.83
    assert of(verdict, "25 % of the language feedback")[0] is True
    assert of(verdict, "3 further rounds")[0] is True
    assert of(verdict, "at least 3 seeds") == (True, True, "3 (of base)")


def test_one_subtask_that_falls_misses_the_first_target_and_is_named() -> None:
    def one_falls(cell: Cell, subtask: str) -> float:
        return 0.45 if cell.kind == "llf-ppo" and subtask == "T2A" else rates(cell, subtask)

    verdict = found(one_falls)
    met, _, measured = of(verdict, "llf-ppo: gain over the base in all eight")
    assert met is False
    assert measured.startswith("positive in 7 of 8")
    assert "least in T2A: -5.0" in measured
    assert of(verdict, "llf-dpo: gain over the base in all eight")[0] is True


def test_a_round_that_falls_back_misses_even_when_no_more_were_run() -> None:
    def falls(cell: Cell, subtask: str) -> float:
        return 0.65 if cell.round == 2 else rates(cell, subtask)

    met, _, measured = of(found(falls, replace(PLAN, rounds=2)), "3 further rounds")
    assert met is False
    assert "round 2: -5.0" in measured
    assert "no more were run" in measured


def test_too_few_rounds_that_all_improve_leave_it_open() -> None:
    assert of(found(rates, replace(PLAN, rounds=3)), "3 further rounds")[:2] == (None, None)


def test_a_quarter_that_is_worse_in_one_generation_task_misses() -> None:
    def worse(cell: Cell, subtask: str) -> float:
        return 0.5 if (cell.annotations, subtask) == (100, "T2V") else rates(cell, subtask)

    met, _, measured = of(found(worse), "25 % of the language feedback")
    assert met is False
    assert measured.startswith("in 3 of 4")
    assert "T2V -5.0" in measured


def test_binary_feedback_that_gains_nothing_is_beaten_without_a_ratio() -> None:
    def useless(cell: Cell, subtask: str) -> float:
        return 0.5 if cell.kind in ("dpo", "ppo") else rates(cell, subtask)

    verdict = found(useless)
    met, sure, measured = of(verdict, RATIO)
    assert (met, sure) == (True, True)  # 20 points are more than three times nothing
    assert measured.count("the binary gains nothing") == 2
    assert of(verdict, "moonshot")[:2] == (True, True)


def test_an_optimiser_that_binary_feedback_harms_does_not_help_the_other() -> None:
    """Language +20 with both; DPO +12.5, which makes 1.6 times, and PPO -10: of the means together it would be 16."""

    def harmed(cell: Cell, subtask: str) -> float:
        if cell.kind == "ppo":
            return 0.4
        return (0.6 if subtask.startswith("T2") else 0.65) if cell.kind == "dpo" else rates(cell, subtask)

    verdict = found(harmed)
    met, sure, measured = of(verdict, RATIO)
    assert (met, sure) == (False, True)
    assert "llf-dpo 1.60 x [" in measured
    assert "llf-ppo the binary gains nothing (+20.0 [" in measured
    assert measured.endswith("the least decides")
    assert of(verdict, "moonshot")[:2] == (False, True)


def test_harm_that_is_less_than_that_of_binary_feedback_is_no_gain() -> None:
    def harmful(cell: Cell, subtask: str) -> float:
        if cell.kind == "base":
            return 0.5
        return 0.45 if cell.kind.startswith("llf-") else 0.4

    verdict = found(harmful)
    assert of(verdict, RATIO)[:2] == (False, True)
    assert of(verdict, "moonshot")[:2] == (False, True)


def test_a_certain_miss_is_as_sure_as_a_certain_success() -> None:
    """One part wholly on the wrong side is enough, however the others do."""

    def falls(cell: Cell, subtask: str) -> float:
        if subtask in ("T2A", "T2V") and (cell.kind == "llf-ppo" or cell.annotations == 100 or cell.round == 3):
            return 0.1
        if cell.round == 3:
            return 0.4
        return rates(cell, subtask)

    verdict = found(falls)
    for words in ("llf-ppo: gain over the base in all eight", "25 % of the language", "3 further rounds"):
        assert of(verdict, words)[:2] == (False, True), words


def test_a_miss_by_less_than_the_interval_is_not_sure() -> None:
    """One right prompt of twenty less than the base's in one seed, one more in another."""

    def near(cell: Cell, subtask: str) -> float:
        if subtask == "T2A" and cell.kind == "llf-ppo":
            return {0: 0.3, 1: 0.55, 2: 0.6}[cell.seed]
        return rates(cell, subtask)

    assert of(found(near), "llf-ppo: gain over the base in all eight")[:2] == (False, False)


def test_a_ratio_below_the_target_is_not_met() -> None:
    def close(cell: Cell, subtask: str) -> float:
        return 0.6 if cell.kind in ("dpo", "ppo") else rates(cell, subtask)

    assert of(found(close), RATIO)[0] is False


def test_what_was_not_measured_is_open() -> None:
    cells, _ = experiment(PLAN, rates)
    rows = verdicts(tables(PLAN, cells, {}))
    assert {(row["met"], row["measured"]) for row in rows} == {(None, "not measured")}
    assert len(rows) == 7


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(2.1, 6.04, "3.40 x [2.10, 6.04]"), (None, None, "3.40 x [no bound: the binary gain is not told from 0]")],
)
def test_figures_in_words(low: float | None, high: float | None, words: str) -> None:
    assert times({"mean": 3.4, "low": low, "high": high}) == words
    assert points({"mean": 0.123, "low": 0.08, "high": 0.166}) == "+12.3 [+8.0, +16.6]"
