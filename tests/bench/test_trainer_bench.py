"""The comparison with TRL: its verdicts on given rows, rounds by phase, and one real run of a tiny batch."""

import json
import subprocess
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from anyloop.modality import Modality
from bench.trainer.__main__ import main
from bench.trainer.material import Fixed, Material, make, reward
from bench.trainer.plan import DPO, QUICK, Plan, contenders
from bench.trainer.result import Result, merged, peak_rss
from bench.trainer.rounds import read_rounds
from bench.trainer.run import measure
from bench.trainer.table import comparisons, failed, show


def row(contender: str, seconds: float, kind: str = "dpo", **changes: Any) -> dict[str, Any]:
    found = Result(
        contender,
        kind,
        8,
        2048.0,
        steps_s=[seconds, seconds, 9 * seconds],
        cpu_s=[seconds] * 3,
        prepare_s=4.0,
        losses=[0.69, 0.68, 0.67, 0.66],
        gradient_norms=[3.0] * 4,
        base_rss=100 << 20,
        peak_rss=300 << 20,
    )
    return {"model": "llama-7m"} | found.to_json() | changes


def test_speed_is_samples_per_second_of_the_median_step_beside_the_peer() -> None:
    (found,) = comparisons([row("anyloop", 1.0), row("trl", 1.6)])
    assert found.speedup == pytest.approx(1.6)
    assert found.cpu_speedup == pytest.approx(1.6)
    assert found.speedup_with_preparation == pytest.approx(2.6 / 2.0)  # four steps share four seconds
    assert found.met
    (slower,) = comparisons([row("anyloop", 1.0), row("trl", 1.6, samples=4)])
    assert slower.speedup == pytest.approx(3.2)


def test_a_side_that_computes_something_else_fails_the_bench() -> None:
    rows = [row("anyloop", 1.0), row("trl", 9.0, losses=[0.69, 0.68, 0.672, 0.66])]
    (found,) = comparisons(rows)
    assert not found.met
    assert found.difference == "losses differ: 0.670000 and 0.672000"
    assert failed({"rows": rows, "errors": []})
    norms = [row("anyloop", 1.0), row("trl", 9.0, gradient_norms=[3.1] * 4)]
    assert "gradient norms differ" in comparisons(norms)[0].difference


def test_online_steps_are_compared_on_given_rollouts_or_not_at_all() -> None:
    given = {"fixed_loss": 0.1, "fixed_gradient_norm": 2.0}
    rows = [row("anyloop", 1.0, "grpo", **given), row("trl", 1.5, "grpo", **given, losses=[7.0])]
    (found,) = comparisons(rows)
    assert (found.compared, found.difference, found.met) == (True, "", False)  # 2 x is the aim
    assert not failed({"rows": rows, "errors": []})
    (free,) = comparisons([row("anyloop", 1.0, "grpo"), row("trl", 2.5, "grpo")])
    assert (free.compared, free.met, free.verdict) == (False, False, "not compared")
    (nothing,) = comparisons([row("anyloop", 1.0, losses=[], gradient_norms=[]), row("trl", 2.5)])
    assert nothing.verdict == "not compared"


def test_repeats_are_one_row_with_all_steps_and_the_largest_memory() -> None:
    first = Result("trl", "grpo", 8, 100.0, [1.0], phases={"generate": [0.5]}, peak_rss=5, losses=[0.1])
    second = Result("trl", "grpo", 8, 120.0, [3.0], phases={"generate": [0.7]}, peak_rss=9, losses=[0.2])
    found = merged([first, second])
    assert (found.steps_s, found.phases, found.peak_rss, found.tokens) == ([1.0, 3.0], {"generate": [0.5, 0.7]}, 9, 110)


def test_a_busy_machine_decides_nothing() -> None:
    """Wall and CPU time disagree by more than a fifth."""
    (found,) = comparisons([row("anyloop", 1.0), row("trl", 2.0, cpu_s=[1.6] * 3)])
    assert (found.verdict, found.met) == ("busy machine", False)
    (calm,) = comparisons([row("anyloop", 1.0), row("trl", 2.0, cpu_s=[1.7] * 3)])
    assert calm.verdict == "met"


def test_memory_is_told_whole_and_above_what_both_sides_begin_with() -> None:
    (found,) = comparisons([row("anyloop", 1.0), row("trl", 1.6, peak_rss=600 << 20, base_rss=200 << 20)])
    assert (found.memory, found.memory_above_base) == (0.5, 0.5)
    (other,) = comparisons([row("anyloop", 1.0), row("trl", 1.6, peak_rss=600 << 20, base_rss=500 << 20)])
    assert (other.memory, other.memory_above_base) == (0.5, 2.0)


@pytest.mark.parametrize(
    ("process", "said"),
    [
        (subprocess.TimeoutExpired("worker", 1.0), "no result after 600 s"),
        (subprocess.CompletedProcess([], 0, "", ""), "no result in its output"),
        (subprocess.CompletedProcess([], 0, "loading\n", ""), "loading"),
    ],
    ids=["timeout", "empty", "other"],
)
def test_a_contender_without_a_result_costs_its_row_only(
    process: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other contender's row is in the report, which is kept after each workload."""

    def started(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        job = json.loads(command[-1])
        if job["contender"] == "anyloop":
            result = Result("anyloop", "dpo", 8, 100.0, [1.0], [1.0])
            return subprocess.CompletedProcess([], 0, json.dumps(result.to_json()), "")
        if isinstance(process, Exception):
            raise process
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr("bench.trainer.run.subprocess.run", started)
    monkeypatch.setattr("bench.trainer.run.model_directory", lambda name, folder: folder)
    monkeypatch.setattr("bench.trainer.run.make", lambda workload, model: Material([], [], [], 9, 0, 10))
    kept: list[int] = []
    report = measure(
        Plan((QUICK, QUICK), (DPO,), 1, tmp_path), lambda _: None, lambda one: kept.append(len(one["rows"]))
    )
    assert [one["contender"] for one in report["rows"]] == ["anyloop", "anyloop"]
    assert all(said in one["error"] for one in report["errors"])
    assert len(report["errors"]) == 2
    assert kept == [1, 2]


def test_the_table_shows_failures_and_verdicts() -> None:
    console = Console(file=StringIO(), width=250)
    error = {"model": "llama-7m", "kind": "grpo", "contender": "trl", "error": "exit code 1"}
    report = {"rows": [row("anyloop", 1.0), row("trl", 1.2)], "errors": [error], "note": "what was measured"}
    show(report, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1.20 x TRL (missed: 1.5 x)" in said
    assert "llama-7m grpo of trl: exit code 1" in said
    assert failed(report)


def test_material_comes_back_from_its_file(tmp_path: Path) -> None:
    material = Material(
        [((1, 2), (3, 9), (4, 9))], [((1, 2), (Modality.IMAGE,))], [Fixed((1,), (2, 3), (-0.5, -0.25), 1.5)], 9, 0, 10
    )
    material.save(tmp_path / "material.json")
    assert Material.load(tmp_path / "material.json") == material


def test_both_sides_reward_the_share_of_even_tokens() -> None:
    assert reward((2, 3, 4, 8)) == 0.75
    assert reward(()) == 0.0


def test_memory_is_this_process_alone() -> None:
    assert 50 << 20 < peak_rss() < 64 << 30


def journal(path: Path, **metrics: Any) -> Path:
    events = [
        {"time": 1010.0, "event": "phase", "round": 1, "phase": "examples", "seconds": 2.0},
        {
            "time": 1030.0,
            "event": "round",
            "round": 1,
            "outcome": "promoted",
            "started": 1008.0,
            "seconds": {"examples": 2.0, "dpo": 9.0, "gate": 6.5},
            "metrics": {"feedback": 64} | metrics,
        },
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_a_round_is_told_by_phase_from_its_last_feedback(tmp_path: Path) -> None:
    (found,) = read_rounds(journal(tmp_path / "rounds.jsonl", last_feedback=1003.0))
    assert (found.waited, found.total, found.feedback) == (5.0, 27.0, 64)
    assert found.between == pytest.approx(27 - 5 - 17.5)
    (unknown,) = read_rounds(journal(tmp_path / "rounds.jsonl"))
    assert (unknown.waited, unknown.total) == (None, 22.0)


def test_the_command_prints_rounds_and_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal(tmp_path / "rounds.jsonl", last_feedback=1003.0)
    assert main(["--round", str(tmp_path)]) == 0
    assert "wait for quiet" in capsys.readouterr().out
    assert main(["--round", str(tmp_path / "nothing.jsonl")]) == 1
    assert "anyloop demo" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_tiny_batch_gives_both_sides_the_same_losses(tmp_path: Path) -> None:
    report = measure(Plan((QUICK,), (DPO,), 1, tmp_path), lambda _: None)
    assert report["errors"] == []
    assert [one["contender"] for one in report["rows"]] == list(contenders(DPO))
    (found,) = comparisons(report["rows"])
    assert (found.difference, found.compared) == ("", True)


@pytest.mark.e2e
def test_material_is_the_same_every_time(tmp_path: Path) -> None:
    from bench.serving.models import model_directory

    model = model_directory(QUICK.model, tmp_path)
    first, second = make(QUICK, model), make(QUICK, model)
    assert first == second
    assert all(chosen[-1] == rejected[-1] == first.end for _, chosen, rejected in first.pairs)
    assert len(first.pairs) == 2 * QUICK.pairs
    assert len(first.fixed) == QUICK.prompts * QUICK.group
