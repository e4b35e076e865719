import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from anyloop.media.store import MediaStore
from anyloop.sequence import Sequencer
from tests.trainer.fake_services import BASE
from tests.trainer.loop import TextSuite, open_sqlite_loop
from trainer.gate.config import GateSettings
from trainer.gate.evaluation import Evaluation, EvaluationCache
from trainer.replay import compare
from trainer.replay.compare import ask, compared

GATE = GateSettings(suite="test")


def evaluation(version: str, successes: list[float]) -> Evaluation:
    prompts = [f"p{n}" for n in range(len(successes))]
    half = len(successes) // 2
    return Evaluation(version, prompts, ["draw"] * half + ["sing"] * half, successes, 0, {})


def finder(*known: Evaluation) -> Callable[[str], Evaluation | None]:
    return {one.version: one for one in known}.get


def test_the_gain_is_paired_and_by_subtask() -> None:
    found = compared(("a", "b"), finder(evaluation("a", [0, 0, 1, 1]), evaluation("b", [1, 1, 1, 0])), GATE)
    assert found["missing"] == []
    assert {name: (one["before"], one["after"]) for name, one in found["subtasks"].items()} == {
        "draw": (0.0, 1.0),
        "sing": (1.0, 0.5),
    }
    assert found["subtasks"]["draw"]["gain"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["subtasks"]["sing"]["gain"] == {"mean": -0.5, "low": -1.0, "high": 0.0}
    assert found["gain"]["mean"] == 0.25  # (1 - 1/2) / 2
    assert {name: one["mean"] for name, one in found["evaluations"].items()} == {"a": 0.5, "b": 0.75}


def test_without_both_evaluations_there_is_no_gain() -> None:
    found = compared(("a", "b"), finder(evaluation("b", [1, 1])), GATE)
    assert found["missing"] == ["a"]
    assert "gain" not in found


def test_what_is_missing_is_asked_once_and_kept(tmp_path: Path, checkpoint: Path, sequencer: Sequencer) -> None:
    suite = TextSuite()
    cache = EvaluationCache(tmp_path / "gate", "test", [prompt.id for prompt in suite.prompts()], GATE)
    with open_sqlite_loop(tmp_path, checkpoint, sequencer) as loop:
        loop.say(6)
        assert loop.learner(gate_timeout_s=0).once()
        loop.services.generated.clear()
        media = MediaStore(loop.settings.effective_media_url)
        asyncio.run(ask(loop.settings, GATE, suite, media, cache, [BASE, "policy-000001"]))
        asked = [request.policy_version for request in loop.services.generated]
    assert (asked.count(BASE), asked.count("policy-000001")) == (6, 6)
    assert compared((BASE, "policy-000001"), cache.get, GATE)["gain"]["mean"] == 1.0


def test_a_suite_that_is_not_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANYLOOP_GATE_SUITE", "no.such:suite")
    assert compare.main(["a", "b", "--gate", str(tmp_path / "gate")]) == 2
    assert "no.such" in capsys.readouterr().err


def test_looking_creates_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ANYLOOP_GATE_SUITE", "tests.trainer.loop:TextSuite")
    assert compare.main(["a", "b", "--gate", str(tmp_path / "gate")]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == ["a", "b"]
    assert not (tmp_path / "gate").exists()
