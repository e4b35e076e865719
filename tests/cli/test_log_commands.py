import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.log_choice import choose_log
from anyloop.cli.records import point_in_time, topic_name
from anyloop.config import Settings
from anyloop.log import FEEDBACK, TOPICS, Event, open_log
from protos.anyloop.v1 import events_pb2, feedback_pb2


def _say(critiques: list[str]) -> None:
    with open_log(Settings().effective_log_url) as log:
        for n, critique in enumerate(critiques):
            said = feedback_pb2.Feedback(response_id=f"r{n}", critique=critique)
            message = events_pb2.FeedbackEvent(feedback_id=f"f{n}", feedback=said)
            log.append(FEEDBACK, Event.wrap(message, key="conversation", source="tests"))


def test_apply_creates_the_topics_once(home: Path, runner: CliRunner) -> None:
    first = runner.invoke(app, ["topics", "apply", "--json"])
    assert sorted(json.loads(first.stdout)["created"]) == sorted(spec.name for spec in TOPICS)
    again = runner.invoke(app, ["topics", "apply", "--json"])
    assert json.loads(again.stdout) == {"dry_run": False, "created": [], "changes": []}
    assert "All topics are as specified." in runner.invoke(app, ["topics", "apply"]).stdout


def test_a_dry_run_says_what_would_change_and_leaves_no_trace(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["topics", "apply", "--partitions", "12", "--dry-run"])
    assert result.exit_code == ExitCode.OK
    assert "would create anyloop.feedback.v1: 12 partition(s)" in result.stdout
    assert "would create anyloop.checkpoints.v1: 1 partition(s), compacted" in result.stdout
    assert not home.exists()


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_another_number_of_partitions_is_refused_with_the_way_out(
    dry_run: list[str], home: Path, runner: CliRunner
) -> None:
    runner.invoke(app, ["topics", "apply"])
    result = runner.invoke(app, ["topics", "apply", "--partitions", "12", *dry_run])
    assert result.exit_code == ExitCode.REFUSED
    assert "keep ANYLOOP_LOG_PARTITIONS=4, or begin a new log" in result.stderr
    assert runner.invoke(app, ["topics", "apply", "--dry-run"]).stdout.strip() == "All topics are as specified."


def test_more_copies_in_sync_than_copies_is_a_usage_error(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["topics", "apply", "--replication", "2", "--min-insync", "3"])
    assert result.exit_code == ExitCode.USAGE
    assert "ANYLOOP_LOG_MIN_INSYNC no higher than ANYLOOP_LOG_REPLICATION" in result.stderr


def test_the_embedded_log_refuses_copies(home: Path, runner: CliRunner) -> None:
    result = runner.invoke(app, ["topics", "apply", "--replication", "3"])
    assert result.exit_code == ExitCode.REFUSED
    assert "or use Kafka" in result.stderr


def test_list_counts_events_and_the_lag_of_a_group(home: Path, runner: CliRunner) -> None:
    runner.invoke(app, ["topics", "apply"])
    _say(["too low", "too red"])
    rows = json.loads(runner.invoke(app, ["topics", "list", "--group", "learners", "--json"]).stdout)
    row = next(row for row in rows if row["topic"] == FEEDBACK)
    assert sum(row["end_offsets"].values()) == 2
    assert row["lag"] == {"learners": 2}


def test_list_shows_where_in_the_topic_a_group_is_behind(
    home: Path, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    runner.invoke(app, ["topics", "apply"])
    _say(["too low", "too red", "too big"])  # of one key, so in one partition
    with open_log(Settings().effective_log_url) as log:
        (part,) = (part for part, end in log.end_offsets(FEEDBACK).items() if end)
        with log.consumer("learners", [FEEDBACK]) as consumer:
            while not consumer.poll(max_records=1, timeout=0.2):
                pass
            consumer.commit({(FEEDBACK, part): 1})
    expected = [2 if one == part else 0 for one in range(4)]
    rows = json.loads(runner.invoke(app, ["topics", "list", "--group", "learners", "--json"]).stdout)
    row = next(row for row in rows if row["topic"] == FEEDBACK)
    assert list(row["lag_by_partition"]["learners"].values()) == expected
    shown = runner.invoke(app, ["topics", "list", "--group", "learners"]).stdout
    (line,) = (line for line in shown.splitlines() if line.split()[0] == FEEDBACK)
    assert line.rstrip().endswith("2: " + " ".join(map(str, expected)))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["topics", "list"], ExitCode.OK),
        (["topics", "apply", "--dry-run"], ExitCode.OK),
        (["checkpoints", "list"], ExitCode.OK),
        (["checkpoints", "rollback"], ExitCode.NOT_FOUND),
        (["log", "read", "feedback"], ExitCode.NOT_FOUND),
        (["log", "tail", "--no-follow"], ExitCode.NOT_FOUND),
        (["replay", "--dead-letters", "--dry-run"], ExitCode.NOT_FOUND),
        (["replay", "--dead-letters"], ExitCode.NOT_FOUND),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_looking_for_a_log_creates_none_and_says_so(
    command: list[str], code: ExitCode, there: bool, home: Path, runner: CliRunner
) -> None:
    if there:
        home.mkdir()
    result = runner.invoke(app, command)
    assert result.exit_code == code
    assert f"There is no log yet: {home / 'log.db'}" in result.stderr
    assert not list(home.glob("log.db*"))
    assert choose_log(Settings(), "kafka", 0)  # the home is still free to begin with a broker


def test_read_gives_every_record_as_one_json_line(home: Path, runner: CliRunner) -> None:
    runner.invoke(app, ["topics", "apply"])
    _say(["too low", "too red", "zu klein – größer!"])
    result = runner.invoke(app, ["log", "read", "feedback", "--json"])
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["message"]["feedback"]["critique"] for record in records] == [
        "too low",
        "too red",
        "zu klein – größer!",
    ]
    assert records[0]["event"]["type"] == "anyloop.v1.FeedbackEvent"


def test_read_can_begin_in_the_past_or_be_limited(home: Path, runner: CliRunner) -> None:
    runner.invoke(app, ["topics", "apply"])
    _say(["a", "b", "c"])
    assert len(runner.invoke(app, ["log", "read", "feedback", "--limit", "2"]).stdout.splitlines()) == 2
    assert len(runner.invoke(app, ["log", "read", "feedback", "--since", "1h"]).stdout.splitlines()) == 3
    assert runner.invoke(app, ["log", "read", "feedback", "--since", "2999-01-01"]).stdout == ""


def test_an_unknown_topic_is_not_found(home: Path, runner: CliRunner) -> None:
    runner.invoke(app, ["topics", "apply"])
    assert runner.invoke(app, ["log", "read", "rumours"]).exit_code == ExitCode.NOT_FOUND
    assert runner.invoke(app, ["log", "tail", "rumours", "--no-follow"]).exit_code == ExitCode.NOT_FOUND


def test_tail_shows_only_the_newest(home: Path, runner: CliRunner) -> None:
    runner.invoke(app, ["topics", "apply"])
    _say(["a", "b", "c"])
    lines = runner.invoke(app, ["log", "tail", "feedback", "--no-follow", "-n", "2", "--json"]).stdout.splitlines()
    assert [json.loads(line)["message"]["feedback"]["critique"] for line in lines] == ["b", "c"]


def test_short_names_of_topics_and_their_dead_letters() -> None:
    assert topic_name("responses") == "anyloop.responses.v1"
    assert topic_name("feedback.dlq") == "anyloop.feedback.v1.dlq"
    assert topic_name("my.own") == "my.own"


def test_points_in_time_are_ages_or_iso_8601() -> None:
    age = datetime.now(UTC) - point_in_time("90m")
    assert abs(age - timedelta(minutes=90)) < timedelta(seconds=5)
    assert point_in_time("2026-01-31T12:00:00Z") == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert point_in_time("2026-01-31") == datetime(2026, 1, 31, tzinfo=UTC)
    for text in ("yesterday", "99999999d"):
        with pytest.raises(CommandError, match="no point in time"):
            point_in_time(text)
