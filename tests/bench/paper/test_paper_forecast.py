from collections.abc import Mapping

import pytest

from bench.paper.forecast import costs, ranked, seconds_left
from bench.paper.plan import Cell

A, B, C = Cell("answers", 0), Cell("critic", 0), Cell("dpo", 0)
LATER = Cell("answers", 1)
GRAPH: Mapping[Cell, Mapping[str, Cell]] = {A: {}, B: {"answers": A}, C: {"answers": A}, LATER: {}}


def test_a_cell_is_expected_to_take_what_its_kind_took_and_an_unknown_kind_what_all_took() -> None:
    assert costs(list(GRAPH), {}) is None
    assert costs([A, B, LATER], {A: 10.0, Cell("critic", 5): 20.0}) == {A: 10.0, B: 20.0, LATER: 10.0}
    assert costs([C], {A: 10.0, Cell("critic", 5): 20.0}) == {C: 15.0}


def test_seeds_come_one_after_the_other_and_the_longest_chain_first() -> None:
    assert ranked(GRAPH, list(GRAPH), {A: 1.0, B: 2.0, C: 5.0, LATER: 100.0}) == [A, C, B, LATER]


@pytest.mark.parametrize(("jobs", "expected"), [(1, 1 + 2 + 5 + 3), (2, 6), (8, 6)])
def test_the_time_left_is_that_of_the_cells_done_on_paper(jobs: int, expected: float) -> None:
    # Two at a time: answers beside the later seed's (3 s), then dpo from 1 to 6, critic from 3 to 5.
    assert seconds_left(GRAPH, list(GRAPH), {}, {A: 1.0, B: 2.0, C: 5.0, LATER: 3.0}, jobs) == expected


def test_what_runs_already_counts_for_what_is_left_of_it() -> None:
    seconds = {A: 10.0, B: 2.0, C: 5.0, LATER: 3.0}
    assert seconds_left(GRAPH, [C], {A: 4.0}, seconds, 1) == 6.0 + 5.0
    assert seconds_left(GRAPH, [C], {A: 60.0}, seconds, 1) == 5.0  # longer than expected: taken to end now
    assert seconds_left(GRAPH, [], {}, seconds, 1) == 0.0
