import numpy as np
import pytest

from anyloop.world import SUBTASKS
from bench.paper.plan import Cell
from bench.paper.worker import BadOutcomes, outcomes, plain

CELL = Cell("dpo", 0, 400, evaluate=2)
RIGHT = {name: [1.0, 0.0] for name in SUBTASKS}


def test_outcomes_of_every_prompt_and_their_sums() -> None:
    found = outcomes(CELL, {"outcomes": {name: [True, 0.5] for name in SUBTASKS}, "prompts": "abc"})
    assert found["outcomes"]["T2V"] == [1.0, 0.5]
    assert found["subtasks"]["T2V"] == {"right": 1.5, "asked": 2}
    assert found["prompts"] == "abc"
    assert outcomes(Cell("critic", 0, 400), {}) == {}  # shared work answers no held-out prompts


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ({}, "outcomes of T2T, TI2T"),
        ({"outcomes": {"T2T": [1.0, 0.0]}, "prompts": "abc"}, "outcomes of T2T, TI2T"),
        ({"outcomes": {**RIGHT, "T2A": [1.0]}, "prompts": "abc"}, "2 prompts of T2A are wanted, got 1"),
        ({"outcomes": {**RIGHT, "T2A": [1.0, 2.0]}, "prompts": "abc"}, "an outcome of T2A is not in 0-1"),
        ({"outcomes": RIGHT}, "digest of the held-out prompts is missing"),
    ],
    ids=["none", "one-subtask", "too-few", "out-of-range", "no-prompts"],
)
def test_what_the_tables_cannot_use_fails_the_cell_with_its_name(returned: dict[str, object], complaint: str) -> None:
    with pytest.raises(BadOutcomes, match=rf"dpo\.n400\.s0: .*{complaint}"):
        outcomes(CELL, returned)


def test_metrics_become_what_json_has_words_for() -> None:
    metrics = {"loss": np.float32(0.5), "steps": np.int64(3), "best": float("inf"), "ok": True, 1: (None, "x", CELL)}
    assert plain(metrics) == {"loss": 0.5, "steps": 3, "best": None, "ok": True, "1": [None, "x", str(CELL)]}
