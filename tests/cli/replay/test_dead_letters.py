"""Dead letters go back once, whatever is killed, filtered or repeated; a poison one does not loop for ever."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anyloop.cli.app import app
from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.log_state import log_state
from anyloop.cli.replay import letters
from anyloop.cli.replay.letters import GROUP, Choice, put_back_letters, would_put_back
from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, TOPICS, Event, EventLog, LogError, dlq, open_log
from anyloop.log.dead_letters import REPLAYS
from protos.anyloop.v1 import events_pb2

ALL = Choice()


@pytest.fixture(params=["sqlite", "kafka"])
def log(home: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[EventLog]:
    home.mkdir()
    if request.param == "kafka":
        monkeypatch.setenv("ANYLOOP_LOG_URL", request.getfixturevalue("kafka_url"))
    with open_log(Settings().effective_log_url) as opened:
        opened.ensure_topics(TOPICS)
        yield opened


def set_aside(log: EventLog, *names: str, reason: str = "bytes are no message") -> None:
    """Events that a consumer found on the feedback topic and could not read."""
    for name in names:
        message = events_pb2.FeedbackEvent(feedback_id=name)
        log.append(FEEDBACK, Event.wrap(message, key=name, source="tests", id=name))
    consume(log, set(names), reason)


def consume(log: EventLog, unreadable: set[str], reason: str) -> None:
    """Everything that the group has not read yet; what is unreadable goes to the dead letters."""
    with log.consumer("tests", [FEEDBACK]) as consumer:
        deadline = time.monotonic() + 45
        while log.lag("tests", [FEEDBACK]):
            assert time.monotonic() < deadline
            for record in consumer.poll(timeout=1.0):
                if record.event.id in unreadable:
                    consumer.dead_letter(record, reason)
            consumer.commit()


def on_topic(log: EventLog) -> list[tuple[str, str]]:
    """(id, how often it came back) of everything on the feedback topic."""
    return [(record.event.id, record.event.extensions.get(REPLAYS, "")) for record in log.read(FEEDBACK)]


def back(log: EventLog) -> list[str]:
    return sorted(name for name, replays in on_topic(log) if replays)


def test_a_dead_letter_is_on_its_topic_again_as_it_was(log: EventLog) -> None:
    set_aside(log, "a")
    assert put_back_letters(log, FEEDBACK, ALL).replayed == 1
    first, again = log.read(FEEDBACK)
    assert again.event.extensions == {REPLAYS: "1"}
    assert replace(again.event, extensions={}) == replace(first.event, extensions={})


def test_a_second_run_puts_nothing_back(log: EventLog) -> None:
    set_aside(log, "a", "b")
    put_back_letters(log, FEEDBACK, ALL)
    assert put_back_letters(log, FEEDBACK, ALL) == letters.Outcome(FEEDBACK)
    assert back(log) == ["a", "b"]
    assert log.lag(GROUP, [dlq(FEEDBACK)]) == 0


def test_the_status_counts_those_that_are_still_to_be_put_back(log: EventLog) -> None:
    set_aside(log, "a", "b")
    url = Settings().effective_log_url
    assert log_state(url).dead_letters[dlq(FEEDBACK)] == 2
    put_back_letters(log, FEEDBACK, ALL)
    assert log_state(url).dead_letters[dlq(FEEDBACK)] == 0
    set_aside(log, "c")
    assert log_state(url).dead_letters[dlq(FEEDBACK)] == 1


def test_a_filter_leaves_the_others_for_later_and_repeats_none(log: EventLog) -> None:
    set_aside(log, "a", reason="too long")
    set_aside(log, "b", reason="of the wrong type")
    set_aside(log, "c", reason="too long")
    some = put_back_letters(log, FEEDBACK, Choice(reason="wrong type"))
    assert (some.replayed, some.filtered) == (1, 2)
    rest = put_back_letters(log, FEEDBACK, ALL)
    assert (rest.replayed, rest.reasons) == (2, {"too long": 2})
    assert back(log) == ["a", "b", "c"]


def test_only_those_set_aside_since_a_time(log: EventLog) -> None:
    set_aside(log, "old")
    assert put_back_letters(log, FEEDBACK, Choice(since=datetime.now(UTC) + timedelta(hours=1))).filtered == 1
    assert back(log) == []


def test_killed_after_the_append_and_before_the_commit_it_repeats_nothing(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(log, "a", "b", "c")
    consumer = log.consumer(GROUP, [dlq(FEEDBACK)])
    killed = type("Killed", (BaseException,), {})

    def kill(*_: object) -> None:
        raise killed

    monkeypatch.setattr(type(consumer), "commit", kill)
    consumer.close()
    with pytest.raises(killed):
        put_back_letters(log, FEEDBACK, ALL)
    monkeypatch.undo()
    assert back(log)
    done = len(back(log))
    again = put_back_letters(log, FEEDBACK, ALL)
    assert (again.before, again.replayed) == (done, 3 - done)
    assert back(log) == ["a", "b", "c"]


def test_a_log_that_fails_half_way_is_told_and_the_next_run_goes_on(
    log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_aside(log, "a", "b", "c")
    append, calls = log.append, []

    def fails_second(topic: str, event: Event) -> object:
        calls.append(event.id)
        if len(calls) == 2:
            raise LogError("the broker is away", retriable=True)
        return append(topic, event)

    monkeypatch.setattr(log, "append", fails_second)
    outcome = put_back_letters(log, FEEDBACK, ALL)
    assert (outcome.replayed, outcome.error) == (1, "the broker is away")
    monkeypatch.undo()
    put_back_letters(log, FEEDBACK, ALL)
    assert back(log) == ["a", "b", "c"]


def test_the_same_event_set_aside_twice_goes_back_once(log: EventLog) -> None:
    set_aside(log, "a")
    (letter,) = log.read(dlq(FEEDBACK))
    log.append(dlq(FEEDBACK), letter.event)
    outcome = put_back_letters(log, FEEDBACK, ALL)
    assert (outcome.replayed, outcome.before) == (1, 1)
    assert back(log) == ["a"]


def test_a_poison_event_is_given_up_after_so_many_times(log: EventLog) -> None:
    set_aside(log, "poison")
    for _ in range(4):
        put_back_letters(log, FEEDBACK, Choice(max_replays=2))
        consume(log, {"poison"}, "still no message")
    assert on_topic(log) == [("poison", ""), ("poison", "1"), ("poison", "2")]
    assert put_back_letters(log, FEEDBACK, Choice(max_replays=2)).given_up == 1
    assert put_back_letters(log, FEEDBACK, Choice(max_replays=3)).replayed == 1


def test_a_dry_run_tells_the_same_and_changes_nothing(log: EventLog) -> None:
    set_aside(log, "a", "b")
    before = log.end_offsets(FEEDBACK)
    assert would_put_back(log, FEEDBACK, ALL).replayed == 2
    assert log.end_offsets(FEEDBACK) == before
    assert log.committed(GROUP, dlq(FEEDBACK)) == {}
    assert put_back_letters(log, FEEDBACK, ALL).replayed == 2


def test_two_commands_do_not_work_at_once(log: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    set_aside(log, "a")
    monkeypatch.setattr(letters, "_JOIN_S", 0.5)
    with log.consumer(GROUP, [dlq(FEEDBACK)]) as other:
        while len(other.positions()) < 4:
            other.poll(timeout=0.2)
        with pytest.raises(CommandError, match="another command") as refused:
            put_back_letters(log, FEEDBACK, ALL)
    assert refused.value.code == ExitCode.REFUSED
    assert back(log) == []


def test_the_command_takes_all_topics_or_one(log: EventLog, runner: CliRunner) -> None:
    set_aside(log, "a")
    other = runner.invoke(app, ["replay", "--dead-letters", "responses", "--json"])
    assert json.loads(other.stdout)["topics"] == [
        {
            "topic": RESPONSES,
            "replayed": 0,
            "replayed_before": 0,
            "left_by_filter": 0,
            "given_up": 0,
            "error": "",
            "reasons": {},
        }
    ]
    dry = runner.invoke(app, ["replay", "--dead-letters", "--dry-run"])
    assert "anyloop.feedback.v1: 1 would be put back" in dry.stdout
    done = runner.invoke(app, ["replay", "--dead-letters", "feedback.dlq"])
    assert "1 put back" in done.stdout
    assert "1 bytes are no message" in done.stdout
    assert "No dead letters wait" in runner.invoke(app, ["replay", "--dead-letters"]).stdout


def test_an_unknown_topic_is_not_found(log: EventLog, runner: CliRunner) -> None:
    assert runner.invoke(app, ["replay", "--dead-letters", "rumours"]).exit_code == ExitCode.NOT_FOUND
