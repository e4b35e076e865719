from dataclasses import replace

import pytest

from anyloop.world import SUBTASKS
from bench.paper.plan import Cell, Graph, Plan
from bench.paper.results import GENERATION, UNDERSTANDING, Incomparable
from bench.paper.store import Record
from bench.paper.tables import tables
from tests.bench.paper.experiment import experiment, rates

PLAN = Plan(
    seeds=(0, 1, 2),
    annotations=400,
    language_shares=(0.25, 0.5, 0.75, 1.0),
    binary_shares=(0.25, 0.5, 0.75, 1.0),
    methods=("dpo", "ppo", "llf-dpo", "llf-ppo"),
)


def test_the_main_table_has_success_and_paired_gain_of_every_method_and_subtask() -> None:
    found = tables(PLAN, *experiment(PLAN, rates))["main"]
    assert [row["method"] for row in found] == ["base", "dpo", "ppo", "llf-dpo", "llf-ppo"]
    assert found[0]["gain"] is None
    assert found[0]["success"]["mean"]["mean"] == 0.5
    language = found[3]
    assert (language["seeds"], language["prompts"], language["annotations"]) == ([0, 1, 2], 20, 400)
    assert {name: language["gain"][name]["mean"] for name in SUBTASKS} == pytest.approx(dict.fromkeys(SUBTASKS, 0.2))
    assert language["success"]["T2V"]["mean"] == pytest.approx(0.7)


def test_every_subtask_is_generation_or_understanding() -> None:
    assert set(GENERATION) == {"TI2TI", "T2I", "T2A", "T2V"}
    assert set(UNDERSTANDING) == {"T2T", "TI2T", "TA2T", "TV2T"}


def test_groups_are_means_of_their_subtasks() -> None:
    def only_pictures(cell: Cell, subtask: str) -> float:
        return 0.9 if cell.kind == "dpo" and subtask == "T2I" else 0.5

    gain = tables(PLAN, *experiment(PLAN, only_pictures))["main"][1]["gain"]
    assert gain["mean"]["mean"] == pytest.approx(0.4 / 8)
    assert gain["generation"]["mean"] == pytest.approx(0.4 / 4)
    assert gain["understanding"]["mean"] == 0.0


def test_the_ratio_is_that_of_the_mean_gains_for_each_optimiser() -> None:
    def uneven(cell: Cell, subtask: str) -> float:
        return 0.6 if cell.kind == "ppo" else rates(cell, subtask)

    found = tables(PLAN, *experiment(PLAN, uneven))["ratios"]
    assert [row["language"] for row in found] == [["llf-dpo"], ["llf-ppo"]]
    assert [row["binary"] for row in found] == [["dpo"], ["ppo"]]
    assert [row["ratio"]["mean"] for row in found] == pytest.approx([4.0, 2.0])
    assert [row["beyond"]["mean"] for row in found] == pytest.approx([0.05, -0.1])
    assert [row["beyond_moonshot"]["mean"] for row in found] == pytest.approx([0.2 - 5.83 * 0.05, 0.2 - 5.83 * 0.1])


def test_a_binary_gain_below_nothing_counts_as_nothing() -> None:
    def harmful(cell: Cell, subtask: str) -> float:
        return 0.3 if cell.kind == "dpo" else rates(cell, subtask)

    row = tables(PLAN, *experiment(PLAN, harmful))["ratios"][0]
    assert row["beyond"]["mean"] == pytest.approx(0.2)  # and not 0.2 + 3 * 0.2
    assert row["beyond"]["high"] == row["language_gain"]["high"]


def test_where_binary_feedback_gains_nothing_there_is_no_ratio() -> None:
    def useless(cell: Cell, subtask: str) -> float:
        return 0.5 if cell.kind == "dpo" else rates(cell, subtask)

    assert tables(PLAN, *experiment(PLAN, useless))["ratios"][0]["ratio"] is None


def test_the_ablation_goes_by_number_of_annotations_and_compares_with_all_of_the_binary_ones() -> None:
    found = tables(PLAN, *experiment(PLAN, rates))["ablation"]
    assert [(row["method"], row["annotations"]) for row in found] == [
        *(("llf-dpo", count) for count in (100, 200, 300, 400)),
        *(("dpo", count) for count in (100, 200, 300, 400)),
    ]
    assert found[0]["gain"]["mean"]["mean"] == pytest.approx(0.1)
    assert found[0]["over_all_binary"]["T2I"]["mean"] == pytest.approx(0.05)
    assert "over_all_binary" not in found[4]


def told(plan: Plan, share: float) -> tuple[Graph, dict[Cell, Record]]:
    """The experiment whose answers' cells say which share of the preferences tells something, more or less by seed."""
    cells, records = experiment(plan, rates)
    for cell in cells:
        if cell.kind == "answers":
            tells = share + {0: -0.05, 1: 0.05}.get(cell.seed, 0.0) if cell.round == 1 else 0.9
            records[cell] = {**records[cell], "metrics": {"preferences_that_tell": tells}}
    return cells, records


def test_the_share_of_annotations_that_tell_stands_beside_their_number() -> None:
    found = tables(PLAN, *told(PLAN, 0.5))["ablation"]
    assert [row["tell"] for row in found] == pytest.approx([100, 200, 300, 400, 50, 100, 150, 200])
    assert [row["tell"] for row in tables(PLAN, *experiment(PLAN, rates))["ablation"]][4:] == [None] * 4


def test_language_stands_beside_binary_at_as_many_annotations_that_tell() -> None:
    plan = replace(PLAN, binary_shares=(0.5, 1.0, 2.0, 4.0), prompts=1600)
    (row,) = tables(plan, *told(plan, 0.5))["informative"]
    assert (row["annotations"], row["binary_annotations"], row["enough"]) == (400, 800, True)
    assert row["binary_informative"] == pytest.approx(400)
    assert row["over"]["mean"] == pytest.approx(0.15)
    assert row["seeds"] == [0, 1, 2]
    (short,) = tables(PLAN, *told(PLAN, 0.5))["informative"]
    assert (short["binary_annotations"], short["enough"]) == (400, False)
    assert tables(PLAN, *experiment(PLAN, rates))["informative"] == []


def test_rounds_have_the_gain_over_the_base_and_over_the_round_before() -> None:
    found = tables(PLAN, *experiment(PLAN, rates))["rounds"]
    assert [row["round"] for row in found] == [1, 2, 3, 4]
    assert [row["annotations"] for row in found] == [400, 800, 1200, 1600]
    assert [row["gain"]["mean"]["mean"] for row in found] == pytest.approx([0.2, 0.25, 0.3, 0.35])
    assert [row["step"]["mean"]["mean"] for row in found] == pytest.approx([0.2, 0.05, 0.05, 0.05])


def test_costs_count_shared_work_once_for_each_method_that_needs_it() -> None:
    found = {row["method"]: row for row in tables(PLAN, *experiment(PLAN, rates))["costs"]}
    assert found["base"]["seconds_with_shared"] == 10.0 + 100.0  # the model that all begin with
    assert found["dpo"]["seconds_with_shared"] == 10.0 + 200.0  # model, answers
    assert found["llf-dpo"]["seconds_with_shared"] == 10.0 + 400.0  # model, answers, critic, pairs
    assert found["llf-ppo"]["seconds_with_shared"] == 10.0 + 500.0  # and the reward model
    assert found["llf-dpo"]["seconds"] == 10.0
    assert found["dpo"]["peak_rss_bytes"] == 2**29
    assert found["llf-dpo"]["peak_rss_bytes"] == 2**30  # its critic's


def test_an_experiment_that_has_just_begun_has_the_rows_that_are_there() -> None:
    cells, records = experiment(PLAN, rates)
    some = {cell: one for cell, one in records.items() if cell.kind == "base" or cell.id == "dpo.n400.s1"}
    found = tables(PLAN, cells, some)
    assert [(row["method"], row["seeds"]) for row in found["main"]] == [("base", [0, 1, 2]), ("dpo", [1])]
    assert found["main"][1]["gain"]["mean"]["over"] == "prompts"
    assert found["ratios"] == []
    assert [row["annotations"] for row in found["ablation"]] == [400]
    assert tables(PLAN, cells, {})["main"] == []


def test_seeds_that_one_of_two_methods_lacks_are_left_out_of_their_ratio() -> None:
    cells, records = experiment(PLAN, rates)
    records = {cell: one for cell, one in records.items() if cell.id != "ppo.n400.s2"}
    found = tables(PLAN, cells, records)["ratios"]
    assert [row["seeds"] for row in found] == [[0, 1, 2], [0, 1]]
    assert len(found[1]["language_gain"]["seeds"]) == 2


def test_answers_to_other_prompts_are_never_compared() -> None:
    cells, records = experiment(PLAN, rates)
    (cell,) = (cell for cell in cells if cell.id == "dpo.n400.s1")
    records[cell] = {**records[cell], "prompts": "others"}
    with pytest.raises(Incomparable, match=r"dpo\.n400\.s1 and base\.n0\.s1 answered different held-out prompts"):
        tables(PLAN, cells, records)


def test_methods_beyond_the_plan_do_not_show() -> None:
    cells, records = experiment(PLAN, rates)
    small = replace(PLAN, methods=("llf-dpo",), ablated=(), rounds=1)
    found = tables(small, cells, records)
    assert [row["method"] for row in found["main"]] == ["base", "llf-dpo"]
    assert list(found["settings"]) == ["llf-dpo"]
    assert found["settings"]["llf-dpo"] == {"dpo_lr": 5e-4}
