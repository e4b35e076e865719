import json
from pathlib import Path
from typing import Any

import pytest

from anyloop.cli.demo.asking import file_of
from anyloop.cli.demo.evaluation import questions
from anyloop.cli.exits import ExitCode
from anyloop.evaluation.critic import CriticError
from anyloop.world import SUBTASKS
from tests.cli.eval.conftest import Evaluate, FakeCritic
from tests.cli.eval.gateway import WorldGateway


def test_the_document_has_what_it_always_had_and_intervals(evaluate: Evaluate) -> None:
    result = evaluate("--prompts", 2, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["versions"], found["split"], found["seed"]) == (["policy-000000"], "heldout", 0)
    assert (found["mean"], found["standard_error"]) == (1.0, 0.0)
    assert list(found["subtasks"]) == list(SUBTASKS)
    sounds = found["subtasks"]["T2A"]
    assert (sounds["right"], sounds["asked"], sounds["rate"]) == (2, 2, 1.0)
    assert sounds["interval"] == [pytest.approx(0.34238, abs=1e-5), 1.0]  # Wilson of 2 of 2: 1 / (1 + 1.96² / 2)
    assert (sounds["dimensions"]["audio timbre"]["right"], found["dimensions"]["timbre"]["asked"]) == (2, 4)
    assert not {"amu", "amg", "overall", "against", "duel", "critic"} & found.keys(), "only what was asked for"


def test_a_terminal_gets_the_table_with_the_mean(evaluate: Evaluate) -> None:
    result = evaluate("--prompts", 2)
    assert result.exit_code == 0, result.stderr
    assert "policy-000000" in result.stdout
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line.strip()}
    assert lines["T2V"] == ["2", "2", "100%", "[34%,", "100%]"]
    assert lines["mean"] == ["100.0%"], "two prompts a subtask tell next to nothing of how prompts differ"
    assert lines["loudness"][:3] == ["4", "4", "100%"]


def test_amu_and_amg_are_asked_when_wanted(evaluate: Evaluate, gateway: WorldGateway) -> None:
    result = evaluate("--prompts", 1, "--amu", 2, "--amg", 2, "--samples", 2, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(gateway.bodies) == 2 * (8 + 2 * 4 + 2 * 9)
    open_ones = [body for body in gateway.bodies if body["modalities"] is None]
    assert len(open_ones) == 2 * 2 * 9, "open prompts leave the choice to the model"
    assert set(found["amu"]["categories"]) == {"perception", "reasoning", "instruction following", "safety"}
    assert found["amg"]["following"]["audio"] == 0.0, "words alone: what was not emitted scores nothing"
    assert found["amg"]["present"]["audio"] == {"answers": 0, "wanted": 8}
    assert found["amg"]["choices"]["T2I"] == {"text": 4}
    assert found["amg"]["most"] == pytest.approx(20.67, abs=0.005)
    assert found["overall"] == (found["amu"]["value"] + found["amg"]["value"]) / 2
    shown = evaluate("--prompts", 1, "--amu", 2, "--amg", 2).stdout
    assert "Overall, (AMU + AMG) / 2" in shown
    assert "AMG (of 20.67 that the votes allow)" in shown


def test_one_version_against_another_on_the_same_prompts(evaluate: Evaluate, gateway: WorldGateway) -> None:
    gateway.is_right = lambda version, prompt, seed: version == "policy-000002"
    result = evaluate("--prompts", 3, "--version", "policy-000002", "--against", "policy-000001", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["versions"], found["against"]["versions"]) == (["policy-000002"], ["policy-000001"])
    assert (found["mean"], found["against"]["mean"]) == (1.0, 0.0)
    duel = found["duel"]
    assert (duel["wins"], duel["ties"], duel["losses"]) == (24, 0, 0)
    assert duel["win_rate"]["value"] == 1.0
    assert duel["p_value"] == pytest.approx(2 / 2**24)
    assert duel["subtasks"]["T2T"]["wins"] == 3
    by_version: dict[str, list[tuple[str, int]]] = {}
    for body in gateway.bodies:
        by_version.setdefault(body["model"], []).append((body["messages"][-1]["content"][-1]["text"], body["seed"]))
    assert sorted(by_version["policy-000002"]) == sorted(by_version["policy-000001"])


def test_a_better_opponent_is_named_and_fails_the_command_where_that_is_wanted(
    evaluate: Evaluate, gateway: WorldGateway
) -> None:
    gateway.is_right = lambda version, prompt, seed: version == "policy-000001"
    result = evaluate("--prompts", 3, "--against", "policy-000001")
    assert result.exit_code == 0
    assert "policy-000001 is better: it wins 24 of 24 decided prompts." in result.stdout
    worse = evaluate("--prompts", 3, "--against", "policy-000001", "--fail-if-worse")
    assert worse.exit_code == ExitCode.FAILED
    assert "policy-000001 is better than policy-000000" in worse.stderr


def test_equal_versions_are_told_as_such(evaluate: Evaluate) -> None:
    result = evaluate("--prompts", 3, "--against", "policy-000001", "--fail-if-worse")
    assert result.exit_code == 0
    assert "No difference that these prompts can show." in result.stdout


def test_the_serving_version_is_not_compared_with_itself(evaluate: Evaluate) -> None:
    result = evaluate("--prompts", 1, "--against", "policy-000000")
    assert result.exit_code == ExitCode.USAGE
    assert "policy-000000 is in service" in result.stderr


def test_the_mean_can_be_a_condition(evaluate: Evaluate, gateway: WorldGateway) -> None:
    gateway.is_right = lambda version, prompt, seed: False
    result = evaluate("--prompts", 1, "--fail-under", 0.5)
    assert result.exit_code == ExitCode.FAILED
    assert "mean success 0.0% is below --fail-under 50.0%" in result.stderr


def test_prompts_of_ones_own_are_judged_by_the_critique_model(evaluate: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    edit = next(task for task, _ in questions("heldout", 1, 0) if task.subtask == "TI2TI")
    (tmp_path / "before.png").write_bytes(file_of(*edit.media[0])[0])
    records = [
        {"prompt": "What is red?", "id": "words", "group": "mine"},
        {
            "prompt": edit.prompt,
            "image": "before.png",
            "id": "both",
            "group": "yours",
            "votes": {"text+image": 0.7, "image": 0.3},
        },
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    result = evaluate("--prompts", path, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["judge"], found["critic"]) == ("critique", "critique-000002")
    assert {name: one["right"] for name, one in found["subtasks"].items()} == {"mine": 1, "yours": 1}
    assert found["synergy"]["text-visual"]["asked"] == 1
    assert (found["selection"]["value"], found["selection"]["choices"]) == (0.7, {"text+image": 1})
    assert "Judged by critique-000002" in evaluate("--prompts", path).stdout


def test_the_critic_can_be_measured_against_the_exact_judge(evaluate: Evaluate) -> None:
    found = json.loads(evaluate("--prompts", 1, "--judge", "critique", "--json").stdout)
    approved = sum(one["right"] for one in found["subtasks"].values())
    assert found["critic_agrees_with_world"]["right"] == approved, "every answer is right, so what it approves agrees"
    assert found["critic_agrees_with_world"]["asked"] == 8


@pytest.mark.parametrize(("away", "code"), [(True, ExitCode.UNREACHABLE), (False, ExitCode.REFUSED)])
def test_a_critic_that_does_not_answer_is_told(
    evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch, away: bool, code: ExitCode
) -> None:
    def judge(self: FakeCritic, turns: object, response: object) -> None:
        raise CriticError("the critique service at x says no", away=away)

    monkeypatch.setattr(FakeCritic, "judge", judge)
    result = evaluate("--prompts", 1, "--judge", "critique")
    assert result.exit_code == code
    assert "the critique service at x says no" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompts", "0"], "give 1 to 10000 prompts"),
        (["--seed", "-1"], "--seed"),
        (["--prompts", "-3"], "give 1 to 10000 prompts"),
        (["--prompts", "none.jsonl"], "Cannot read none.jsonl"),
        (["--prompts", "none.jsonl", "--judge", "world"], "judges only its own prompts"),
        (["--fail-if-worse"], "add --against VERSION"),
        (["--version", "policy-000001", "--against", "policy-000001"], "against itself shows nothing"),
        (["--against", "lab-000001"], "`anyloop checkpoints diff A lab-000001 --evaluate` asks any two versions"),
    ],
    ids=["none", "seed", "negative", "no-file", "world-on-own", "no-opponent", "itself", "replay"],
)
def test_wrong_use_is_told_before_anything_is_asked(
    evaluate: Evaluate, gateway: WorldGateway, arguments: list[str], said: str
) -> None:
    result = evaluate(*arguments)
    assert result.exit_code == ExitCode.USAGE
    assert said in result.stderr
    assert gateway.bodies == []


def test_a_refused_prompt_ends_it_and_is_named(evaluate: Evaluate, gateway: WorldGateway) -> None:
    gateway.refuses = " "
    result = evaluate("--prompts", 1)
    assert result.exit_code == ExitCode.REFUSED
    assert "the prompt is too long" in result.stderr


def test_out_holds_the_document_and_the_page(evaluate: Evaluate, tmp_path: Path) -> None:
    result = evaluate("--prompts", 2, "--json", "--out", tmp_path / "new" / "out")
    assert json.loads((tmp_path / "new" / "out" / "eval.json").read_text()) == json.loads(result.stdout)
    assert (tmp_path / "new" / "out" / "eval.html").read_text().startswith("<!doctype html>")


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_asked(
    evaluate: Evaluate, gateway: WorldGateway, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    result = evaluate("--prompts", 1, "--out", tmp_path / "file")
    assert result.exit_code == ExitCode.FAILED
    assert "choose another --out" in result.stderr
    assert gateway.bodies == []


def test_what_was_measured_is_shown_even_when_it_cannot_be_written(
    evaluate: Evaluate, gateway: WorldGateway, tmp_path: Path
) -> None:
    (tmp_path / "eval.html").mkdir()  # which no file replaces
    result = evaluate("--prompts", 1, "--json", "--out", tmp_path)
    assert result.exit_code == ExitCode.FAILED
    assert json.loads(result.stdout)["mean"] == 1.0
    assert f"Cannot write {tmp_path / 'eval.html'}" in result.stderr
    assert sorted(one.name for one in tmp_path.iterdir()) == ["eval.html", "eval.json"], "and nothing half written"


def test_files_are_utf_8_whatever_the_terminal_speaks(
    evaluate: Evaluate, gateway: WorldGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.other = "ein Dreieck, größer \ud83d"  # half of a surrogate pair at the end
    given: list[object] = []
    write_text = Path.write_text

    def watched(self: Path, *arguments: Any, **options: Any) -> int:
        given.append(options.get("encoding"))
        return write_text(self, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", watched)
    result = evaluate("--prompts", 1, "--amu", 1, "--json", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    assert given == ["utf-8", "utf-8"]
    assert "größer ?" in (tmp_path / "eval.html").read_text(encoding="utf-8")
