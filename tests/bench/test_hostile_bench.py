"""The experiment on hostile critiques: its lies are lies, its plan is fair, its table says what the cells say."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from anyloop.world import SUBTASKS, tasks
from anyloop.world.annotate import read_critique, true_claims
from bench.hostile import __main__ as bench
from bench.hostile.annotators import RING, lie, statements, voices
from bench.hostile.plan import SUSPICION, Cell, Plan, cells
from bench.hostile.report import interval, show, summary


def answered(subtask: str, seed: int) -> tuple[tasks.Task, tasks.Answer, tasks.Judgement]:
    """A right answer for even seeds, one with a fault for odd ones."""
    rng = np.random.default_rng(seed)
    task = tasks.sample(subtask, "train", rng)
    scene = task.scene
    if seed % 2:
        name = str(rng.choice(list(scene.VALUES)))
        scene = tasks.changed(scene, name, tasks.other_value(scene, name, rng))
    answer = tasks.answer_with(task, scene, scene, rng)
    return task, answer, tasks.judge(task, answer)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_no_lie_says_what_is_wrong_and_nothing_else(subtask: str) -> None:
    for seed in range(40):
        task, answer, judgement = answered(subtask, seed)
        words = lie(task, answer, judgement, np.random.default_rng(seed))
        reading = read_critique(task, words)
        assert (reading.right, reading.claims) != (judgement.ok, true_claims(judgement)), words
        assert reading.right or reading.claims, words  # it does say something


def test_the_stated_share_lies_by_anybody_or_by_a_few() -> None:
    scattered = voices(200, 0.3, "scattered", np.random.default_rng(0))
    ring = voices(200, 0.3, "ring", np.random.default_rng(0))
    for found in (scattered, ring):
        assert sum(voice.lies for voice in found) == 60
    assert len({voice.principal for voice in scattered if voice.lies}) > 20
    liars = {voice.principal for voice in ring if voice.lies}
    assert len(liars) == RING
    assert liars.isdisjoint(voice.principal for voice in ring if not voice.lies)


def test_honest_statements_are_the_same_words_however_many_others_lie() -> None:
    asked = [answered(SUBTASKS[n % 8], n) for n in range(40)]
    nobody = statements(asked, voices(40, 0.0, "ring", np.random.default_rng(0)), 5)
    some = statements(asked, voices(40, 0.3, "ring", np.random.default_rng(1)), 5)
    assert all(a[1] == b[1] for a, b in zip(nobody, some, strict=True) if not b[0].lies)
    assert sum(a[1] != b[1] for a, b in zip(nobody, some, strict=True)) >= 10


def test_each_condition_is_run_believing_and_robust_on_every_seed() -> None:
    plan = cells(Plan(seeds=2))
    assert len(plan) == len(set(plan)) == 2 * (1 + 2 + 8)
    assert Cell(1, "ring", 0.3, 0.3) in plan
    assert Cell(0, "scattered", 0.0, SUSPICION) in plan
    assert {cell.share for cell in cells(Plan.quick())} == {0.0, 0.3}


def cell(seed: int, kind: str, share: float, stated: float, right: float, **more: float) -> dict:
    described = {"seed": seed, "kind": kind, "share": share, "stated": stated}
    return {"cell": described, "success": {"mean": right}, **more}


CELLS = [
    cell(0, "base", 0.0, 0.0, 0.5),
    cell(1, "base", 0.0, 0.0, 0.6),
    cell(0, "ring", 0.3, 0.0, 0.60, lies=30),
    cell(1, "ring", 0.3, 0.0, 0.70, lies=30),
    cell(0, "ring", 0.3, 0.3, 0.70, lies=30, trimmed_lies=27, honest_lost=5.0),
    cell(1, "ring", 0.3, 0.3, 0.76, lies=30, trimmed_lies=24, honest_lost=7.0),
]


def test_the_table_pairs_cells_by_seed() -> None:
    (row,) = summary(CELLS)
    assert (row["base"], row["believing"], row["robust"]) == (
        pytest.approx(0.55),
        pytest.approx(0.65),
        pytest.approx(0.73),
    )
    assert row["difference"] == pytest.approx(0.08)
    # differences .10 and .06: sd .028284, / sqrt 2 = .02, * 12.706
    assert row["difference_95"] == [pytest.approx(0.08 - 0.25412), pytest.approx(0.08 + 0.25412)]
    assert (row["lies_caught"], row["honest_lost"], row["seeds"]) == (pytest.approx(0.85), 6.0, 2)
    assert interval([0.1]) is None
    console = Console(record=True, width=160)
    show({"plan": Plan().described(), "summary": [row]}, console)
    text = console.export_text()
    assert "30 % ring" in text
    assert "+8.0" in text


@pytest.mark.slow
def test_an_interrupted_run_goes_on_with_the_cells_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two cells of the real thing: the base, and a round on a handful of critiques."""
    out = tmp_path / "hostile.json"
    plan = Plan(seeds=1, prompts=24, per_subtask=1, shares=(0.3,), settings=("dpo_epochs=1", "critique_epochs=1"))
    wanted = [Cell(0, "base", 0.0, 0.0), Cell(0, "ring", 0.3, 0.3)]
    monkeypatch.setattr(bench, "cells", lambda plan: wanted[:1])
    bench.run(plan, Console(quiet=True), out)
    monkeypatch.setattr(bench, "cells", lambda plan: wanted)
    document = bench.run(plan, Console(quiet=True), out)
    assert [one["cell"]["kind"] for one in document["cells"]] == ["base", "ring"]
    assert json.loads(out.read_text()) == document
    assert document["cells"][1]["lies"] == 7
    assert document["cells"][1]["metrics"]["robust_statements"] == 24
    again = bench.run(plan, Console(quiet=True), out)
    assert again["cells"] == document["cells"]
