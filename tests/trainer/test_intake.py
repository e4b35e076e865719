"""What the trainer takes from the log: each record once, in order, from where its own state has read."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from anyloop.cli.replay import letters
from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, LogError, UnknownTopic, dlq
from anyloop.log.dead_letters import REPLAYS
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2, policy_pb2
from tests.trainer.events import feedback, response
from trainer.config import TrainerSettings
from trainer.intake import GROUP, Intake, fault_of
from trainer.join_store import JoinStore
from trainer.journal import Journal
from trainer.learner import Learner

SESSION_S = 4.0


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    with SqliteLog(tmp_path / "log.db", session_timeout=SESSION_S) as opened:
        opened.ensure_topics()
        yield opened


@pytest.fixture
def homes(tmp_path: Path) -> Iterator["Homes"]:
    with ExitStack() as stack:
        yield Homes(tmp_path, stack)


class Homes:
    """Trainers' states by name, open until the test ends or they are stopped."""

    def __init__(self, root: Path, stack: ExitStack) -> None:
        self._root, self._stack = root, stack

    def start(
        self, name: str, log: EventLog, late_after_s: float | None = None, **more: object
    ) -> tuple[Intake, JoinStore]:
        store = JoinStore(self._root / name / "state.db", late_after_s)
        intake = Intake(log, store, **more)  # type: ignore[arg-type]
        self._stack.callback(store.close)
        self._stack.callback(intake.close)
        return intake, store


def say(log: EventLog, first: int, count: int) -> set[str]:
    """Responses with feedback, over all partitions. Returns the feedback ids."""
    for number in range(first, first + count):
        name = f"r{number}"
        said = feedback(f"f{number}", name, created=2000 + number, critique="no")
        log.append(RESPONSES, Event.wrap(response(name), key=name, source="test", id=name))
        log.append(FEEDBACK, Event.wrap(said, key=name, source="test", id=said.feedback_id))
    return {f"f{number}" for number in range(first, first + count)}


def claim(intake: Intake, store: JoinStore, used: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    claimed = store.begin_round(10_000, 10_000, intake.held(), used)
    if claimed is None:
        return []
    store.finish_round(claimed.id, "done")
    return [one.feedback.feedback_id for one in store.claimed(claimed.id)]


def poll_until(intake: Intake, held: int) -> None:
    deadline = time.monotonic() + 20
    while len(intake.held()) != held:
        assert time.monotonic() < deadline, f"{len(intake.held())} partitions instead of {held}"
        intake.poll(0.05)


def total(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_trainers_with_states_of_their_own_share_the_partitions_and_each_feedback_counts_once(
    log: SqliteLog, homes: Homes
) -> None:
    names = say(log, 0, 40)
    first, first_store = homes.start("first", log)
    first.drain(0.05)
    used = set(claim(first, first_store))
    assert used == names

    names |= say(log, 40, 40)
    second, second_store = homes.start("second", log)
    poll_until(first, 4)
    deadline = time.monotonic() + 20
    while len(first.held()) != 2 or len(second.held()) != 2:
        assert time.monotonic() < deadline
        first.poll(0.05)
        second.poll(0.05)
    for _ in range(10):
        first.poll(0.05)
        second.poll(0.05)
    assert first.held() | second.held() == {0, 1, 2, 3}
    # The second has read its partitions from their beginning, to have the responses, whatever the group had committed.
    assert second_store.counts()["feedback"] > 15
    a, b = claim(first, first_store, used), claim(second, second_store, used)
    assert a
    assert b
    assert sorted(a + b) == sorted(names - used)


def test_a_partition_that_comes_back_is_read_from_where_this_state_was(log: SqliteLog, homes: Homes) -> None:
    say(log, 0, 20)
    first, first_store = homes.start("first", log)
    first.drain(0.05)
    first.close()
    say(log, 20, 20)
    second, second_store = homes.start("second", log)
    second.drain(0.05)  # commits far beyond what the first has
    assert second_store.counts()["feedback"] == 40
    second.close()
    assert log.lag(GROUP, [FEEDBACK]) == 0
    again = Intake(log, first_store)
    again.drain(0.05)
    again.close()
    assert first_store.counts()["feedback"] == first_store.counts()["responses"] == 40


def test_a_partition_taken_over_while_running_is_not_read_from_the_groups_offset(log: SqliteLog, homes: Homes) -> None:
    first, first_store = homes.start("first", log)
    poll_until(first, 4)
    second, _ = homes.start("second", log)
    deadline = time.monotonic() + 20
    while len(first.held()) != 2:
        assert time.monotonic() < deadline
        first.poll(0.05)
        second.poll(0.05)
    names = say(log, 0, 40)
    for _ in range(20):
        first.poll(0.02)
        second.poll(0.02)
    assert log.lag(GROUP, [FEEDBACK]) == 0
    assert 0 < first_store.counts()["feedback"] < 40
    second.close()
    poll_until(first, 4)
    for _ in range(20):
        first.poll(0.02)
    assert set(claim(first, first_store)) == names


def test_the_group_learns_where_a_state_is_whose_process_died_before_it_could_tell(
    log: SqliteLog, homes: Homes
) -> None:
    say(log, 0, 8)
    intake, store = homes.start("one", log)
    intake.drain(0.05)
    intake.close()
    log._writer.execute("DELETE FROM commits")
    assert log.lag(GROUP, [RESPONSES, FEEDBACK]) == 16
    again = Intake(log, store)
    again.drain(0.05)
    again.close()
    assert log.lag(GROUP, [RESPONSES, FEEDBACK]) == 0


def test_records_that_the_log_has_lost_are_counted_and_passed_over(log: SqliteLog, homes: Homes) -> None:
    intake, store = homes.start("one", log)
    say(log, 0, 40)
    intake.drain(0.05)
    say(log, 40, 40)
    gone = {part: following + 2 for (topic, part), following in store.positions().items() if topic == FEEDBACK}
    assert set(gone) == {0, 1, 2, 3}
    for part, end in gone.items():  # as retention does
        log._writer.execute(
            "DELETE FROM records WHERE part = ? AND pos < ? AND topic_id = (SELECT id FROM topics WHERE name = ?)",
            (part, end, FEEDBACK),
        )
    before = total("anyloop_trainer_gap_records_total", topic=FEEDBACK)
    intake.drain(0.05)
    assert total("anyloop_trainer_gap_records_total", topic=FEEDBACK) - before == 8
    assert store.counts()["feedback"] == 72
    assert store.counts()["responses"] == 80


def test_a_log_made_anew_is_read_from_its_start(tmp_path: Path, homes: Homes) -> None:
    with SqliteLog(tmp_path / "old.db") as old:
        old.ensure_topics()
        say(old, 0, 20)
        intake, store = homes.start("one", old)
        intake.drain(0.05)
        intake.close()
    with SqliteLog(tmp_path / "new.db") as new:
        new.ensure_topics()
        say(new, 18, 6)
        intake = Intake(new, store)
        intake.drain(0.05)
        intake.close()
    assert store.counts()["feedback"] == 24


class Flaky:
    """A log, or a consumer of it, of whose calls one in five fails, as when the network comes and goes."""

    def __init__(self, inner: object, calls: list[int]) -> None:
        self._inner, self._calls = inner, calls

    def __getattr__(self, name: str) -> object:
        found = getattr(self._inner, name)
        if name in ("close", "positions", "seek"):  # these ask nobody
            return found

        def call(*arguments: object, **more: object) -> object:
            self._calls[0] += 1
            if self._calls[0] % 5 == 0:
                raise LogError("away", retriable=True)
            done = found(*arguments, **more)
            return Flaky(done, self._calls) if name == "consumer" else done

        return call


def test_a_log_that_comes_and_goes_loses_and_repeats_nothing(log: SqliteLog, homes: Homes) -> None:
    names = say(log, 0, 30)
    intake, store = homes.start("one", Flaky(log, [0]))  # type: ignore[arg-type]
    failures = 0
    deadline = time.monotonic() + 20
    while store.counts()["feedback"] < 30:
        assert time.monotonic() < deadline
        try:
            intake.poll(0.05)
        except LogError:
            failures += 1
    assert failures > 1
    assert sorted(claim(intake, store)) == sorted(names)


def test_a_log_made_anew_under_a_running_trainer_is_read_from_its_start(
    log: SqliteLog, homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.intake._LOOK_EVERY_S", 0.1)
    say(log, 0, 40)
    intake, store = homes.start("one", log)
    intake.drain(0.05)
    for table in ("records", "commits"):
        log._writer.execute(f"DELETE FROM {table}")
    log._writer.execute("UPDATE partitions SET next_offset = 0")
    say(log, 40, 8)
    deadline = time.monotonic() + 20
    while store.counts()["feedback"] < 48:
        assert time.monotonic() < deadline
        intake.poll(0.05)


def test_topics_are_not_created_but_waited_for(tmp_path: Path, homes: Homes) -> None:
    with SqliteLog(tmp_path / "empty.db") as empty:
        intake, _ = homes.start("one", empty)
        with pytest.raises(UnknownTopic):
            intake.poll(0.05)
        empty.ensure_topics()
        say(empty, 0, 3)
        assert intake.drain(0.05) == 3


def test_poison_is_set_aside_once_even_by_a_state_that_starts_anew(log: SqliteLog, homes: Homes) -> None:
    good = Event.wrap(feedback("f", "r"), key="k", source="test")
    log.append(FEEDBACK, Event("undecodable", "test", good.type, good.time, "k", b"\xff\xff\xff"))
    log.append(FEEDBACK, Event.wrap(policy_pb2.GenerateRequest(), key="k", source="test", id="wrong type"))
    log.append(FEEDBACK, Event.wrap(feedback("", "r"), key="k", source="test", id="nameless"))
    log.append(RESPONSES, Event.wrap(feedback("f", "r"), key="k", source="test", id="wrong topic"))
    say(log, 0, 4)
    for name in ("first", "second"):
        intake, store = homes.start(name, log)
        intake.drain(0.05)
        intake.close()
        assert store.counts()["feedback"] == 4
    letters = [record.event for topic in (FEEDBACK, RESPONSES) for record in log.read(dlq(topic))]
    assert sorted(letter.id for letter in letters) == ["nameless", "undecodable", "wrong topic", "wrong type"]
    reasons = {letter.id: letter.extensions["dlqreason"] for letter in letters}
    assert "no message type" in reasons["wrong type"]
    assert "are not a anyloop.v1.FeedbackEvent" in reasons["undecodable"]
    assert reasons["nameless"] == "feedback without an id"
    assert "does not belong on" in reasons["wrong topic"]


def poison(log: EventLog, count: int) -> list[str]:
    good = Event.wrap(feedback("f", "r"), key="k", source="test")
    for number in range(count):
        log.append(FEEDBACK, Event(f"bad{number}", "test", good.type, good.time, "k", b"\xff\xff\xff"))
    return [f"bad{number}" for number in range(count)]


def letters_of(log: EventLog) -> list[str]:
    return sorted(record.event.id for record in log.read(dlq(FEEDBACK)))


def test_poison_is_set_aside_once_however_often_what_came_with_it_cannot_be_applied(
    log: SqliteLog, homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = poison(log, 2)
    intake, store = homes.start("one", log)
    with monkeypatch.context() as full:
        full.setattr(JoinStore, "apply", lambda *_: (_ for _ in ()).throw(OSError("No space left on device")))
        for _ in range(6):
            with pytest.raises(OSError, match="No space"):
                intake.drain(0.05)
            intake.close()  # so that it reads from its state again
    intake.drain(0.05)
    assert letters_of(log) == names
    assert store.positions()[FEEDBACK, next(log.read(FEEDBACK)).partition] == 2


def late_ones(log: EventLog, count: int) -> list[str]:
    """Feedback said long after its response; all in one partition."""
    log.append(RESPONSES, Event.wrap(response("r"), key="r", source="test", id="r"))
    for number in range(count):
        said = feedback(f"late{number}", "r", created=10**9)
        log.append(FEEDBACK, Event.wrap(said, key="r", source="test", id=said.feedback_id))
    return [f"late{number}" for number in range(count)]


def set_aside(intake: Intake, store: JoinStore, tmp_path: Path) -> None:
    """What the learner does about late feedback."""
    settings = TrainerSettings(late_feedback="dead_letter", join_window_h=1)
    journal = Journal(tmp_path / "rounds.jsonl")
    Learner(intake, store, None, None, journal, settings)._see_to_late_ones()  # type: ignore[arg-type]


def test_late_feedback_is_set_aside_once_although_the_log_goes_away_and_another_trainer_takes_over(
    log: SqliteLog, homes: Homes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = late_ones(log, 6)
    first, first_store = homes.start("first", log, late_after_s=3600.0)
    first.drain(0.05)
    calls = 0
    real = SqliteLog.append

    def flaky(self: SqliteLog, topic: str, event: Event) -> object:
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise LogError("broker away", retriable=True)
        return real(self, topic, event)

    with monkeypatch.context() as broken:
        broken.setattr(SqliteLog, "append", flaky)
        with pytest.raises(LogError):
            set_aside(first, first_store, tmp_path)
    assert letters_of(log) == names[:3]
    left = first_store.overdue(0.0)
    assert [one.event.feedback_id for one in left] == names[3:]  # each that has gone is remembered at once
    first.close()
    second, second_store = homes.start("second", log, late_after_s=3600.0)
    second.drain(0.05)
    set_aside(second, second_store, tmp_path)
    assert letters_of(log) == names
    assert second_store.overdue(0.0) == []
    second.close()
    first.drain(0.05)
    set_aside(first, first_store, tmp_path)  # the second had the partition meanwhile
    assert letters_of(log) == names


def test_a_letter_of_late_feedback_says_how_often_it_came_back(log: SqliteLog, homes: Homes, tmp_path: Path) -> None:
    late_ones(log, 1)
    intake, store = homes.start("one", log, late_after_s=3600.0)
    intake.drain(0.05)
    set_aside(intake, store, tmp_path)
    letters.put_back_letters(log, FEEDBACK, letters.Choice())
    intake.drain(0.05)
    set_aside(intake, store, tmp_path)
    assert [record.event.extensions.get(REPLAYS) for record in log.read(dlq(FEEDBACK))] == [None, "1"]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (response("r"), ""),
        (events_pb2.ResponseEvent(), "a response without an id"),
        (events_pb2.ResponseEvent(response_id="r", output_token_ids=[1, 2]), ""),
        (
            events_pb2.ResponseEvent(response_id="r", output_token_ids=[1, 2], output_logprobs=[-1]),
            "a response with 2 tokens and 1 log-probabilities",
        ),
        (feedback("f", "r"), ""),
        (feedback("f", conversation_id="c"), ""),
        (feedback("f"), "feedback that names neither a response nor a conversation"),
        (feedback("f", "r", ratings={"overall": 1.0}), ""),
        (feedback("f", "r", ratings={"overall": float("nan")}), "ratings outside 0 to 1: overall=nan"),
        (feedback("f", "r", ratings={"colour": 40.0}), "ratings outside 0 to 1: colour=40.0"),
    ],
)
def test_what_is_wrong_with_a_message(message: events_pb2.ResponseEvent, fault: str) -> None:
    assert fault_of(message) == fault


def test_what_was_consumed_beyond_the_dedupe_window_does_not_count_when_read_again(
    log: SqliteLog, homes: Homes
) -> None:
    names = say(log, 0, 12)
    ends = {(FEEDBACK, part): end for part, end in log.end_offsets(FEEDBACK).items()}
    later = say(log, 12, 12)
    time.sleep(0.2)
    intake, store = homes.start("rebuilt", log, consumed=lambda: ends, dedupe_s=0.1)
    intake.drain(0.05)
    assert set(claim(intake, store)) == later
    intake.close()
    intake, store = homes.start("within", log, consumed=lambda: ends, dedupe_s=60.0)
    intake.drain(0.05)
    assert set(claim(intake, store)) == names | later


def test_what_others_consumed_while_they_had_the_partitions_does_not_count_after_a_takeover(
    log: SqliteLog, homes: Homes
) -> None:
    consumed = {(RESPONSES, 0): 0}
    first, _ = homes.start("first", log)
    poll_until(first, 4)
    second, second_store = homes.start("second", log, consumed=lambda: dict(consumed), dedupe_s=0.1)
    deadline = time.monotonic() + 20
    while len(second.held()) != 2:
        assert time.monotonic() < deadline
        first.poll(0.02)
        second.poll(0.02)
    say(log, 0, 40)
    time.sleep(0.2)
    mine = second.held()
    consumed |= {(FEEDBACK, part): end for part, end in log.end_offsets(FEEDBACK).items() if part not in mine}
    first.close()
    poll_until(second, 4)
    second.drain(0.05)
    used = {
        record.event.id
        for record in log.read(FEEDBACK)
        if record.offset < consumed.get((FEEDBACK, record.partition), 0)
    }
    assert used
    assert set(claim(second, second_store)) == {f"f{number}" for number in range(40)} - used


def test_poison_of_a_log_made_anew_is_set_aside_whatever_the_group_had_committed_of_the_old_one(
    log: SqliteLog, homes: Homes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.intake._LOOK_EVERY_S", 0.0)
    say(log, 0, 40)
    first, _ = homes.start("first", log)
    first.drain(0.05)  # the group stands far on
    first.close()
    intake, _ = homes.start("one", log)
    intake.drain(0.05)
    for table in ("records", "commits"):
        log._writer.execute(f"DELETE FROM {table}")
    log._writer.execute("UPDATE partitions SET next_offset = 0")
    names = poison(log, 3)
    deadline = time.monotonic() + 20
    while letters_of(log) != names:
        assert time.monotonic() < deadline
        intake.poll(0.05)


def test_the_same_feedback_appended_twice_counts_once_and_is_told(log: SqliteLog, homes: Homes) -> None:
    names = say(log, 0, 5)
    say(log, 0, 5)
    before = total("anyloop_trainer_left_out_total", reason="duplicate")
    intake, store = homes.start("one", log)
    intake.drain(0.05)
    assert sorted(claim(intake, store)) == sorted(names)
    assert total("anyloop_trainer_left_out_total", reason="duplicate") - before == 5
