"""What `anyloop replay` refuses, and how it goes on with what was begun."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.replay.home import only_one
from anyloop.cli.replay.plan import Plan
from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, Event, open_log
from anyloop.registry import Registry
from anyloop.registry.copies import copy_version
from tests.trainer.events import feedback, response


@pytest.fixture
def spoken(home: Path) -> Path:
    """A log with one answer and feedback on it, and a registry with the base."""
    home.mkdir()
    settings = Settings()
    with open_log(settings.effective_log_url) as log:
        log.ensure_topics()
        log.append(RESPONSES, Event.wrap(response("r"), key="r", source="test", id="r"))
        log.append(FEEDBACK, Event.wrap(feedback("f", "r"), key="r", source="test", id="f"))
    for lineage in ("policy", "critique"):
        Registry(settings.effective_registry_dir).import_base(lineage, settings.model_dir)
    return home


def refused(runner: CliRunner, *arguments: str) -> tuple[int, str]:
    result = runner.invoke(app, ["replay", *arguments])
    return result.exit_code, " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name the new lineage with --into"),
        (["--into", "policy"], "which are the live ones"),
        (["--into", "a/b"], "letters, digits"),
        (["--into", "lab"], "say where to begin"),
        (["--into", "lab", "--from", "soon"], "no point in time"),
        (["--into", "lab", "--from", "beginning", "--set", "dpo_lr"], "write NAME=VALUE"),
        (["--into", "lab", "--from", "beginning", "--set", "dpo_rl=1"], "did you mean dpo_lr"),
        (["--into", "lab", "--from", "beginning", "--set", "dpo_lr=-1"], "greater than 0"),
        (["--into", "lab", "--from", "beginning", "--lookback", "long"], "no point in time"),
        (["--into", "lab", "--dead-letters"], "exclude each other"),
        (["--reason", "x", "--into", "lab"], "belong to --dead-letters"),
        (["responses"], "anyloop log read responses"),
    ],
)
def test_wrong_use_says_what_to_write(spoken: Path, runner: CliRunner, arguments: list[str], said: str) -> None:
    code, error = refused(runner, *arguments)
    assert code == ExitCode.USAGE
    assert said in error
    assert not (spoken / "replays" / "lab").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--from", "0@999"], "there is no 999 yet"),
        (["--from", "9@0"], "partitions 0 to 3"),
        (["--from", "2999-01-01"], "no feedback in this range"),
        (["--from", "beginning", "--to", "2001-01-01"], "no feedback in this range"),
        (["--from", "beginning", "--base", "policy-000009"], "choose a start with --base (policy-000000)"),
    ],
)
def test_what_is_not_there_is_not_found_and_leaves_nothing(
    spoken: Path, runner: CliRunner, arguments: list[str], said: str
) -> None:
    code, error = refused(runner, "--into", "lab", *arguments)
    assert code == ExitCode.NOT_FOUND
    assert said in error
    assert not (spoken / "replays" / "lab").exists()


def test_a_name_that_the_registry_knows_is_refused(spoken: Path, runner: CliRunner) -> None:
    registry = Registry(Settings().effective_registry_dir)
    copy_version(registry, "policy-000000", registry, lineage="lab", parent="policy-000000")
    code, error = refused(runner, "--into", "lab", "--from", "beginning")
    assert code == ExitCode.REFUSED
    assert "lab-000001 is in the registry" in error


def kept(home: Path, **changes: object) -> Plan:
    asked = {"from": ["2h"], "to": None, "algorithm": "dpo", "base": "", "rounds": 2, "set": None, "lookback": "7d"}
    options: dict[str, object] = {
        "lineage": "lab",
        "algorithm": "dpo",
        "rounds": 2,
        "log": Settings().effective_log_url,
        "base": "policy-000000",
        "critique": "critique-000000",
        "gate_suite": "",
        "begin": {},
        "end": {},
        "settings": {},
        "asked": asked,
        "state": "done",
        "counts": {"usable": 3},
    }
    plan = Plan(**(options | changes))  # type: ignore[arg-type]
    plan.save(home / "replays" / "lab")
    return plan


def test_a_replay_goes_on_only_as_it_was_begun(home: Path) -> None:
    plan = kept(home)
    folder = home / "replays" / "lab"
    assert Plan.load(folder) == plan
    plan.refuse_other({"from": ["2h"], "algorithm": "dpo", "rounds": None, "set": None}, folder)
    with pytest.raises(CommandError, match="begun with --algorithm dpo, not ppo") as other:
        plan.refuse_other({"algorithm": "ppo"}, folder)
    assert other.value.code == ExitCode.REFUSED


def test_one_that_was_begun_on_another_log_is_refused(spoken: Path, runner: CliRunner) -> None:
    kept(spoken, state="filling", log="sqlite:///elsewhere.db")
    code, error = refused(runner, "--into", "lab")
    assert code == ExitCode.REFUSED
    assert "was begun on sqlite:///elsewhere.db" in error


def test_two_commands_do_not_work_on_one_lineage(spoken: Path, runner: CliRunner) -> None:
    with only_one(Settings(), "lab"):
        code, error = refused(runner, "--into", "lab", "--from", "beginning")
    assert code == ExitCode.REFUSED
    assert "another command works on the replay into lab" in error


def test_a_damaged_plan_says_what_to_do(spoken: Path, runner: CliRunner) -> None:
    kept(spoken)
    (spoken / "replays" / "lab" / "replay.json").write_text("{")
    code, error = refused(runner, "--into", "lab")
    assert code == ExitCode.FAILED
    assert "is no plan of a replay" in error


def test_one_that_is_done_tells_its_result_again(spoken: Path, runner: CliRunner) -> None:
    kept(spoken)
    registry = Registry(Settings().effective_registry_dir)
    for parent, outcome in (("policy-000000", "promoted"), ("lab-000001", "rejected")):
        metrics = {"feedback_ids": ["f"]}
        made = copy_version(registry, "policy-000000", registry, lineage="lab", parent=parent, metrics=metrics)
        registry.record_gate(made.version, {"outcome": outcome, "reason": "as measured"})
    result = runner.invoke(app, ["replay", "--into", "lab", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["best"] == "lab-000001"
    assert [row["outcome"] for row in report["versions"]] == ["promoted", "rejected"]
    told = runner.invoke(app, ["replay", "--into", "lab"]).stdout
    assert "anyloop checkpoints promote lab-000001 --lineage policy" in told


def test_one_that_made_nothing_fails_and_says_so(spoken: Path, runner: CliRunner) -> None:
    kept(spoken)
    code, error = refused(runner, "--into", "lab")
    assert code == ExitCode.FAILED
    assert "no version came of it" in error
