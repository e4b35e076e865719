import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop import audit
from anyloop.cli import audit as command
from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from anyloop.config import Settings
from anyloop.log import EventLog, open_log


@pytest.fixture
def log(home: Path) -> Iterator[EventLog]:
    home.mkdir()
    with open_log(Settings().effective_log_url) as log:
        log.ensure_topics()
        audit.record(log, action="promote", subject="policy-000001", actor="gate", details={"digest": "ab" * 32})
        audit.record(log, action="rollback", subject="policy-000000", actor="anna@ops-1", reason="red squares")
        audit.record(log, action="rollout.start", subject="prod/main", actor="rollout/prod/main")
        audit.record(log, action="rollout.pause", subject="prod/main", actor="ben@ops-2", outcome="refused")
        yield log


def actions(runner: CliRunner, *options: str) -> list[str]:
    result = runner.invoke(app, ["audit", "--json", *options])
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)["action"] for line in result.stdout.splitlines()]


def test_everything_in_order(log: EventLog, runner: CliRunner) -> None:
    assert actions(runner) == ["promote", "rollback", "rollout.start", "rollout.pause"]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--action", "rollback"], ["rollback"]),
        (["--action", "rollout"], ["rollout.start", "rollout.pause"]),
        (["--action", "promote", "--action", "rollout.pause"], ["promote", "rollout.pause"]),
        (["--actor", "anna"], ["rollback"]),
        (["--actor", "ben@ops-2"], ["rollout.pause"]),
        (["--subject", "prod/main"], ["rollout.start", "rollout.pause"]),
        (["--last", "1"], ["rollout.pause"]),
        (["--since", "1h", "--last", "2"], ["rollout.start", "rollout.pause"]),
        (["--since", "2999-01-01"], []),
    ],
)
def test_only_what_was_asked_for(log: EventLog, runner: CliRunner, options: list[str], found: list[str]) -> None:
    assert actions(runner, *options) == found


def test_that_there_is_nothing_is_said(log: EventLog, runner: CliRunner) -> None:
    assert "No such entry." in runner.invoke(app, ["audit", "--actor", "nobody"]).stderr


def test_a_line_for_people_says_who_did_what_and_why(log: EventLog, runner: CliRunner) -> None:
    lines = runner.invoke(app, ["audit"]).stdout.splitlines()
    assert lines[0].endswith(": promote policy-000001 (abababababab)")
    assert " gate on " in lines[0]
    assert lines[1].endswith("Z anna@ops-1: rollback policy-000000: red squares")
    assert lines[3].endswith("ben@ops-2: rollout.pause prod/main [refused]")


def test_following_prints_what_comes(log: EventLog, runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            raise KeyboardInterrupt
        twice = {"action": "promote", "actor": "gate", "audit_id": "same"}
        if len(looks) == 1:
            audit.record(log, subject="policy-000002", **twice)
        if len(looks) == 2:
            audit.record(log, subject="policy-000002", **twice)

    monkeypatch.setattr(command.time, "sleep", sleep)
    result = runner.invoke(app, ["audit", "--follow", "--json"])
    assert result.exit_code == ExitCode.INTERRUPTED
    assert [json.loads(line)["subject"] for line in result.stdout.splitlines()][-2:] == ["prod/main", "policy-000002"]


def test_a_log_without_the_topic_says_how_to_get_it(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["audit"])
    assert result.exit_code == ExitCode.NOT_FOUND
    assert "anyloop topics apply" in result.stderr
