"""Which records a replay learns from."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.replay import selection
from anyloop.cli.replay.selection import Selected, copy_feedback, copy_responses, offsets_at, point
from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, open_log
from tests.trainer.events import feedback, response


@pytest.fixture(params=["sqlite", "kafka"])
def log(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EventLog]:
    kafka = request.param == "kafka"
    with open_log(request.getfixturevalue("kafka_url") if kafka else f"sqlite:///{tmp_path}/source.db") as opened:
        opened.ensure_topics()
        yield opened


@pytest.fixture
def target(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:///{tmp_path}/target.db") as opened:
        opened.ensure_topics()
        yield opened


def answer(log: EventLog, *names: str, conversation: str = "") -> None:
    for name in names:
        event = response(name, conversation=conversation)
        log.append(RESPONSES, Event.wrap(event, key=event.conversation_id, source="test", id=name))


def say(log: EventLog, name: str, to: str = "", key: str = "", **said: object) -> None:
    event = feedback(name, to, **said)  # type: ignore[arg-type]
    log.append(FEEDBACK, Event.wrap(event, key=key or to, source="test", id=name))


def copy(log: EventLog, target: EventLog, begin: dict[int, int] | None = None) -> Selected:
    ends = log.end_offsets(FEEDBACK)
    selected = copy_feedback(log, target, begin or dict.fromkeys(ends, 0), ends, lambda: None)
    first = selection.responses_from(log, selected, timedelta(days=7))
    copy_responses(log, target, selected, first, log.end_offsets(RESPONSES), lambda: None)
    return selected


def ids(log: EventLog, topic: str) -> list[str]:
    return sorted(record.event.id for record in log.read(topic))


def test_points_are_times_offsets_or_the_beginning() -> None:
    assert point(["beginning"]) == {}
    assert point(["0@12", "3@7"]) == point(["0@12,3@7"]) == {0: 12, 3: 7}
    assert point(["2026-01-31"]) == datetime(2026, 1, 31, tzinfo=UTC)


@pytest.mark.parametrize("texts", [["yesterday"], ["0@1", "2h"], ["2h", "3h"], ["0@"], ["-1@2"], ["beginning", "0@1"]])
def test_other_points_are_refused(texts: list[str]) -> None:
    with pytest.raises(CommandError) as refused:
        point(texts)
    assert refused.value.code == ExitCode.USAGE


def test_offsets_of_partitions_not_named_are_the_others(log: EventLog) -> None:
    zero = dict.fromkeys(range(4), 0)
    for n in range(40):
        say(log, f"f{n}", key=str(n))
    ends = log.end_offsets(FEEDBACK)
    assert offsets_at(log, FEEDBACK, {1: 2}, zero) == zero | {1: 2}
    assert offsets_at(log, FEEDBACK, {1: 2}, ends) == ends | {1: 2}
    with pytest.raises(CommandError, match="partitions 0 to 3, not 4"):
        offsets_at(log, FEEDBACK, {4: 0}, zero)
    with pytest.raises(CommandError, match="there is no"):
        offsets_at(log, FEEDBACK, {1: ends[1] + 1}, zero)


def test_a_time_is_the_first_record_since_then_in_every_partition(log: EventLog) -> None:
    for n in range(20):
        say(log, f"old{n}", key=str(n))
    now = datetime.now(UTC)
    ends = log.end_offsets(FEEDBACK)
    for n in range(20):
        say(log, f"new{n}", key=str(n))
    assert offsets_at(log, FEEDBACK, now, {}) == ends
    future = now + timedelta(hours=1)
    assert offsets_at(log, FEEDBACK, future, {}) == log.end_offsets(FEEDBACK)


def test_feedback_brings_the_responses_it_names_and_no_others(log: EventLog, target: EventLog) -> None:
    answer(log, "r1", "r2", "r3", "r4")
    say(log, "f1", "r1")
    say(log, "f2", "r2", preferred_over="r3")
    selected = copy(log, target)
    assert ids(target, RESPONSES) == ["r1", "r2", "r3"]
    assert ids(target, FEEDBACK) == ["f1", "f2"]
    assert (selected.feedback, selected.responses, selected.usable()) == (2, 3, 2)


def test_feedback_on_a_conversation_brings_all_of_it(log: EventLog, target: EventLog) -> None:
    answer(log, "r1", "r2", conversation="talk")
    answer(log, "other")
    say(log, "f1", key="talk", conversation_id="talk")
    assert copy(log, target).usable() == 1
    assert ids(target, RESPONSES) == ["r1", "r2"]


def test_a_response_may_stand_before_the_range_or_after_its_feedback(log: EventLog, target: EventLog) -> None:
    answer(log, "before")
    say(log, "skipped", "before")
    begin = log.end_offsets(FEEDBACK)
    say(log, "f1", "before")
    say(log, "f2", "after")
    answer(log, "after")
    assert copy(log, target, begin).usable() == 2
    assert ids(target, FEEDBACK) == ["f1", "f2"]


def test_what_cannot_be_learned_from_is_counted(log: EventLog, target: EventLog) -> None:
    answer(log, "r1")
    say(log, "f1", "r1")
    say(log, "f1", "r1")
    say(log, "orphan", "nowhere")
    say(log, "half", "r1", preferred_over="nowhere")
    log.append(FEEDBACK, Event("poison", "test", "anyloop.v1.FeedbackEvent", datetime.now(UTC), "r1", b"\xff\xff"))
    selected = copy(log, target)
    assert (selected.feedback, selected.unreadable, len(selected.events), selected.usable()) == (5, 1, 3, 1)
    assert ids(target, FEEDBACK) == ["f1", "f1", "half", "orphan", "poison"]


def test_events_keep_their_attributes_bytes_and_order(log: EventLog, target: EventLog) -> None:
    answer(log, "r")
    said = [feedback(f"f{n:04}", "r") for n in range(1200)]
    log.append_many(FEEDBACK, [Event.wrap(one, key="r", source="test", id=one.feedback_id) for one in said])
    copy(log, target)
    before = [record.event for record in log.read(FEEDBACK)]
    assert [record.event for record in target.read(FEEDBACK)] == before
