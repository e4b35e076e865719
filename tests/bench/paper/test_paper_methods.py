"""Every kind of cell, small, on the real model: what one writes the next reads, and what all must return is there."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anyloop.world import SUBTASKS
from bench.paper import careless, methods
from bench.paper.plan import METHODS, Cell, Plan, graph
from bench.paper.worker import outcomes, plain

SMALL = Plan(
    seeds=(3,),
    annotations=16,
    prompts=24,
    methods=tuple(METHODS)[1:],
    language_shares=(1.0,),
    binary_shares=(1.0,),
    rounds=2,
    evaluate=1,
    settings=(
        ("critique_epochs", "1"),
        ("dpo_epochs", "1"),
        ("grpo_group", "2"),
        ("grpo_iterations", "1"),
        ("grpo_prompts", "4"),
        ("ppo_iterations", "2"),
        ("ppo_rollouts", "8"),
        ("reward_epochs", "1"),
    ),
)
pytestmark = pytest.mark.e2e  # half a minute of training


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every cell of a plan of one seed returned, by its id."""
    root = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(careless, "STEPS", 2)
        patch.setattr(methods, "SETTINGS", {**methods.SETTINGS})
        returned: dict[str, dict[str, Any]] = {}
        from bench.paper.plan import wanted

        for cell, wants in graph(SMALL, wanted(SMALL)).items():
            folder = root / cell.id
            folder.mkdir()
            returned[cell.id] = methods.run_cell(cell, {role: root / one.id for role, one in wants.items()}, folder)
    return returned


def test_every_method_answers_all_held_out_prompts_the_same_ones(done: dict[str, dict[str, Any]]) -> None:
    digests = set()
    for name in METHODS:
        cell = Cell(name, 3, 0 if name == "base" else 16, evaluate=1)
        record = outcomes(cell, plain(done[cell.id]))
        assert set(record["outcomes"]) == set(SUBTASKS)
        digests.add(record["prompts"])
    assert len(digests) == 1


def test_language_makes_pairs_where_people_said_what_is_wrong(done: dict[str, dict[str, Any]]) -> None:
    assert done["answers.n16.s3"]["metrics"]["prompts"] == 24
    assert done["pairs.n16.s3"]["metrics"]["answers"] > 24  # logged and fresh ones
    assert done["pairs.n16.s3"]["metrics"].get("pairs", 0) > 0


def test_annotations_beyond_a_cells_own_are_not_seen(tmp_path: Path, done: dict[str, dict[str, Any]]) -> None:
    record = {"prompt": [1], "modalities": ["text"], "answer": [2], "other": [3], "critique": "Bad.", "prefers": 1}
    assert methods._logged(record, True).critique == "Bad."
    assert methods._logged(record, False).critique == ""
    assert methods._logged(record, False).prefers == 0


def test_a_second_round_begins_with_the_first_ones_weights(done: dict[str, dict[str, Any]]) -> None:
    second = [name for name in done if name.endswith(".r2")]
    assert {name.split(".")[-4] for name in second} >= {"llf-dpo", "critic", "pairs", "answers"}
    assert replace(SMALL).rounds == 2
