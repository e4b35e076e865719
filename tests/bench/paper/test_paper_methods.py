"""Every kind of cell, small, on the real model: what one writes the next reads, and what all must return is there."""

from typing import Any

import pytest

from anyloop.world import SUBTASKS
from bench.paper import careless, methods, shared_work
from bench.paper.__main__ import base_digest
from bench.paper.plan import METHODS, Cell, Plan, graph, wanted
from bench.paper.work import logged_of
from bench.paper.worker import outcomes, plain

SMALL = Plan(
    seeds=(3,),
    annotations=16,
    prompts=24,
    methods=tuple(METHODS)[1:],
    language_shares=(1.0,),
    binary_shares=(1.0,),
    rounds=2,
    line="llf-dpo",
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
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # half a minute of training where nothing else runs


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What every cell of a plan of one seed returned, by its id."""
    root = tmp_path_factory.mktemp("cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(careless, "STEPS", 2)
        patch.setattr(methods, "_GATE_PROMPTS", 2)
        patch.setattr(shared_work, "EXACT_PROMPTS", 1)
        returned: dict[str, dict[str, Any]] = {}
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


def test_annotations_beyond_a_cells_own_are_not_seen() -> None:
    record = {"prompt": [1], "modalities": ["text"], "answer": [2], "other": [3], "critique": "Bad.", "prefers": 1}
    assert logged_of(record, True).critique == "Bad."
    assert logged_of(record, False).critique == ""
    assert logged_of(record, False).prefers == 0


def test_a_second_round_goes_through_the_gate(done: dict[str, dict[str, Any]]) -> None:
    second = done["llf-dpo.n16.s3.r2"]
    assert second["metrics"]["promoted"] in (True, False)
    assert second["metrics"]["gate"]
    if not second["metrics"]["promoted"]:  # then nothing has changed
        assert second["outcomes"] == done["llf-dpo.n16.s3"]["outcomes"]


def test_other_settings_of_the_methods_make_results_stale(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_digest()
    monkeypatch.setitem(methods.OWN, "dpo", {"dpo_lr": 1e-5})
    assert base_digest() != before
    monkeypatch.undo()
    monkeypatch.setattr(careless, "STEPS", 299)
    assert base_digest() != before
