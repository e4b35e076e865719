import json
from pathlib import Path

import pytest

from bench.paper.__main__ import base_digest, main
from bench.paper.plan import QUICK

FAKE = "--function=tests.bench.paper.fake_cells:run_cell"
N = QUICK.annotations


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACE", str(tmp_path / "trace"))
    return tmp_path / "paper"


def test_one_cell_and_what_it_needs_then_the_tables(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--quick", f"--out={out}", "--seeds=7", "--only=base*", f"--only=ppo.n{N}.s7", FAKE]
    assert main([*arguments, "--set=dpo_lr=1e-4"]) == 0
    made = sorted(path.stem for path in (out / "quick" / "cells").iterdir())
    assert made == [f"answers.n{QUICK.most}.s7", "base.n0.s7", "model.n0.s0", f"ppo.n{N}.s7", f"reward.n{N}.s7"]
    document = json.loads((out.parent / "paper.json").read_text())
    assert document["plan"]["settings"] == {"dpo_lr": "1e-4"}
    assert document["cells"][f"ppo.n{N}.s7"]["cell"]["settings"] == {"dpo_lr": "1e-4"}
    assert "python -m bench.paper --quick --seeds 7 --set dpo_lr=1e-4" in (out / "quick/results.md").read_text()
    assert "ppo" in capsys.readouterr().out
    assert main(["plan", *arguments, "--set=dpo_lr=1e-4"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert next(line for line in listed if line.startswith("ppo")).split()[1:4] == ["0", "s", "reads"]
    assert next(line for line in listed if line.startswith("dpo")).split()[1:3] == ["to", "do"]


def test_a_failed_cell_makes_the_exit_code_and_is_named_with_what_waits_for_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAILS", f"reward.n{N}.s0")
    assert main(["--quick", f"--out={out}", f"--only=ppo.n{N}.s0", FAKE]) == 1
    said = capsys.readouterr().err
    assert f"failed: reward.n{N}.s0 exited with status 1: RuntimeError: the loss is not a number" in said
    assert f"not done: ppo.n{N}.s0 needs a cell that failed" in said
    assert f"reward.n{N}.s0" in json.loads((out.parent / "paper.json").read_text())["failed"]


def test_the_docs_hold_a_full_run_only(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["report", f"--out={out}"])
    assert "run `python -m bench.paper` first" in capsys.readouterr().err
    assert main(["--quick", f"--out={out}", "--only=base.n0.s0", FAKE]) == 0
    with pytest.raises(SystemExit, match="2"):
        main(["report", f"--out={out}"])
    assert "is of a quick run, and docs/ holds the full one" in capsys.readouterr().err
    assert main(["report", f"--out={out}", f"--docs={tmp_path / 'docs'}"]) == 0
    assert "quick run" in (tmp_path / "docs" / "results.md").read_text()


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("--only=dop", "no cell is called dop"),
        ("--set=dpo_lr", "--set wants NAME=VALUE"),
        ("--seeds=0,one", "--seeds wants whole numbers"),
        ("--jobs=0", "at least 1"),
    ],
)
def test_wrong_arguments(argument: str, complaint: str, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([argument, f"--out={out}", FAKE])
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_the_base_has_a_digest_of_its_weights() -> None:
    assert len(base_digest()) == 64
    assert base_digest() == base_digest()
