"""Two versions side by side, and the winner of a replay in service."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.registry import Registry, announce, serving_version
from anyloop.registry.copies import copy_version
from tests.models.random_omni import build_random_omni

SUITE = "tests.cli.two_questions:Suite"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("model"))


@pytest.fixture
def registry(home: Path, model: Path) -> Registry:
    """policy-000000 → policy-000001 (learned a, b); lab-000001 (b, c) by another algorithm, from policy-000000 too."""
    home.mkdir()
    settings = Settings()
    registry = Registry(settings.effective_registry_dir)
    base = registry.import_base("policy", model)
    registry.import_base("critique", model)
    with open_log(settings.effective_log_url) as log:
        log.ensure_topics()
        announce(log, "policy", base.version, "promoted")
    for lineage, algorithm, ids, lr in (("policy", "dpo", ["a", "b"], 1e-4), ("lab", "ppo", ["b", "c"], 2e-4)):
        metrics = {"algorithm": algorithm, "feedback_ids": ids, "settings": {"dpo_lr": lr, "seed": 0}}
        copy_version(registry, base.version, registry, lineage=lineage, parent=base.version, metrics=metrics)
    return registry


def keep(home: Path, version: str, successes: list[float]) -> None:
    """An evaluation as the gate keeps it: two prompts of each of two subtasks."""
    prompts = ["draw-0", "draw-1", "sing-0", "sing-1"]
    same = {"samples": 1, "temperature": 1.0, "max_tokens": 96, "seed": 7}
    evaluation = {
        "version": version,
        "prompts": prompts,
        "subtasks": ["draw", "draw", "sing", "sing"],
        "successes": successes,
        "unanswered": 0,
        "failed": {},
    }
    (home / "gate").mkdir(exist_ok=True)
    document = {"key": json.dumps([SUITE, prompts, same], sort_keys=True), "evaluation": evaluation}
    (home / "gate" / f"{version}.json").write_text(json.dumps(document))


def diff(runner: CliRunner, *arguments: str) -> dict:
    result = runner.invoke(app, ["checkpoints", "diff", *arguments, "--gate-suite", SUITE, "--json"])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_descent_settings_and_feedback_stand_side_by_side(registry: Registry, runner: CliRunner) -> None:
    found = diff(runner, "policy-000001", "lab-000001")
    assert [one["lineage"] for one in found["versions"]] == ["policy", "lab"]
    assert (found["common_ancestor"], found["same_weights"]) == ("policy-000000", True)
    assert found["settings"] == {"algorithm": ["dpo", "ppo"], "dpo_lr": [1e-4, 2e-4]}
    assert found["feedback"] == {"shared": ["b"], "only_before": ["a"], "only_after": ["c"]}


def test_feedback_of_ancestors_counts(registry: Registry, runner: CliRunner) -> None:
    metrics = {"feedback_ids": ["d"]}
    copy_version(registry, "policy-000000", registry, lineage="lab", parent="lab-000001", metrics=metrics)
    found = diff(runner, "lab-000001", "lab-000002")
    assert found["feedback"] == {"shared": ["b", "c"], "only_before": [], "only_after": ["d"]}
    assert found["without_settings"] == ["lab-000002"]


def test_answers_are_compared_prompt_by_prompt(registry: Registry, home: Path, runner: CliRunner) -> None:
    keep(home, "policy-000001", [1.0, 0.0, 0.0, 0.0])
    keep(home, "lab-000001", [1.0, 1.0, 0.0, 0.0])
    found = diff(runner, "policy-000001", "lab-000001")["evaluation"]
    assert found["missing"] == []
    assert found["subtasks"]["draw"]["before"] == 0.5
    assert found["subtasks"]["draw"]["after"] == 1.0
    assert found["subtasks"]["sing"]["gain"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    # One of the two drawings gained: a resample of two has a mean gain of 0, 1/2 or 1, halved by the other subtask.
    assert found["gain"] == {"mean": 0.25, "low": 0.0, "high": 0.5}
    text = runner.invoke(
        app, ["checkpoints", "diff", "policy-000001", "lab-000001", "--gate-suite", SUITE], env={"COLUMNS": "200"}
    ).stdout
    assert "no difference that these prompts can show" in text
    assert "[+0.0%, +50.0%]" in text


def test_a_missing_evaluation_is_named_with_the_way_to_make_it(
    registry: Registry, home: Path, runner: CliRunner
) -> None:
    assert diff(runner, "policy-000001", "lab-000001")["evaluation"]["missing"] == ["policy-000001", "lab-000001"]
    assert not (home / "gate").exists(), "looking creates nothing"
    keep(home, "lab-000001", [1.0, 1.0, 1.0, 1.0])
    found = diff(runner, "policy-000001", "lab-000001")["evaluation"]
    assert "gain" not in found
    assert found["note"] == f"no evaluation of policy-000001 on {SUITE}: ask both now with --evaluate"


def test_critique_models_are_not_asked(registry: Registry, runner: CliRunner) -> None:
    assert "held-out loss" in diff(runner, "critique-000000", "critique-000000")["evaluation"]["note"]


def test_an_unknown_version_or_suite_is_told(registry: Registry, runner: CliRunner) -> None:
    unknown = runner.invoke(app, ["checkpoints", "diff", "policy-000001", "lab-000009"])
    assert unknown.exit_code == ExitCode.NOT_FOUND
    suite = runner.invoke(app, ["checkpoints", "diff", "policy-000001", "lab-000001", "--gate-suite", "no.such:suite"])
    assert suite.exit_code == ExitCode.FAILED
    assert "no.such" in suite.stderr


def test_the_list_shows_replays_after_the_live_lineages(registry: Registry, runner: CliRunner) -> None:
    registry.record_gate("lab-000001", {"outcome": "rejected", "reason": "worse"})
    rows = json.loads(runner.invoke(app, ["checkpoints", "list", "--json"]).stdout)
    assert [(row["version"], row["state"], row["serving"]) for row in rows] == [
        ("policy-000000", "promoted", True),
        ("policy-000001", "written", False),
        ("critique-000000", "written", False),
        ("lab-000001", "rejected", False),
    ]
    only = json.loads(runner.invoke(app, ["checkpoints", "list", "--lineage", "lab", "--json"]).stdout)
    assert [row["version"] for row in only] == ["lab-000001"]


def test_the_winner_of_a_replay_is_promoted_as_the_next_live_version(registry: Registry, runner: CliRunner) -> None:
    alone = runner.invoke(app, ["checkpoints", "promote", "lab-000001", "--wait", "0"])
    assert alone.exit_code == ExitCode.USAGE
    assert "add --lineage policy" in alone.stderr
    result = runner.invoke(
        app, ["checkpoints", "promote", "lab-000001", "--lineage", "policy", "--wait", "0", "--json"]
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["version"] == "policy-000002"
    with open_log(Settings().effective_log_url) as log:
        assert serving_version(log, "policy") == "policy-000002"
        assert serving_version(log, "lab") is None


def test_a_critique_model_cannot_serve_as_the_policy(registry: Registry, runner: CliRunner) -> None:
    result = runner.invoke(app, ["checkpoints", "promote", "critique-000000", "--lineage", "policy", "--wait", "0"])
    assert result.exit_code == ExitCode.REFUSED
