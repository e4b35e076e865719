"""What the gateway remembers, and how it keeps up with the log."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from anyloop.log import RESPONSES, Event, EventLog, open_log
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2
from services.gateway import ledger as ledger_module
from services.gateway.follower import ResponseFollower, log_identity
from services.gateway.ledger import Ledger, TakenFeedback


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite://{tmp_path / 'log.db'}") as opened:
        opened.ensure_topics()
        yield opened


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(tmp_path / "gateway" / "ledger.db")
    yield opened
    opened.close()


def answered(log: EventLog, number: int) -> None:
    response = events_pb2.ResponseEvent(response_id=f"r{number}", conversation_id=f"c{number}")
    log.append(RESPONSES, Event.wrap(response, key=f"c{number}", source="test"))


def test_the_follower_reads_each_record_once_over_restarts(log: EventLog, ledger: Ledger) -> None:
    for number in range(7):
        answered(log, number)
    assert ResponseFollower(log, ledger).catch_up() == 7
    answered(log, 7)
    assert ResponseFollower(log, ledger).catch_up() == 1
    assert [ledger.conversation_of(f"r{number}") for number in (0, 7, 8)] == ["c0", "c7", None]


def test_the_follower_passes_over_what_it_cannot_read(log: EventLog, ledger: Ledger) -> None:
    good = Event.wrap(events_pb2.ResponseEvent(response_id="r", conversation_id="c"), key="c", source="test")
    bad = Event(id="x", source="test", type=good.type, time=good.time, key="c", data=b"\xff")
    log.append_many(RESPONSES, [bad, good])
    assert ResponseFollower(log, ledger).catch_up() == 2
    assert ledger.conversation_of("r") == "c"


def test_a_follower_thread_that_fails_says_why(log: EventLog, ledger: Ledger) -> None:
    follower = ResponseFollower(log, ledger, poll_s=0.01)
    answered(log, 1)
    ledger.add_responses = None  # type: ignore[assignment,method-assign]
    follower.start()
    follower._thread.join(5)
    assert "following the responses topic failed" in str(follower.failure)
    follower.close()


def test_the_first_feedback_of_an_id_stays(ledger: Ledger) -> None:
    first = TakenFeedback("fb-1", "app", "digest", True, b"event")
    ledger.add_feedback(first)
    ledger.add_feedback(TakenFeedback("fb-1", "app", "other", False, b"other"))
    assert ledger.feedback("fb-1") == first
    assert ledger.feedback("fb-2") is None


def test_the_oldest_rows_go_when_the_ledger_is_full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_KEEP", 3)
    monkeypatch.setattr(ledger_module, "_PRUNE_EVERY", 1)
    for number in range(5):
        ledger.add_responses([(f"r{number}", "c", "app")])
    assert [ledger.conversation_of(f"r{number}") for number in range(5)] == [None, None, "c", "c", "c"]
    assert ledger._db.execute("SELECT response_id FROM principals").fetchall() == [("r2",), ("r3",), ("r4",)]


def test_a_new_ledger_begins_a_week_back(tmp_path: Path, ledger: Ledger) -> None:
    with SqliteLog(tmp_path / "old.db") as log:
        log.ensure_topics()
        for number in range(20):
            answered(log, number)
        log._writer.execute("UPDATE records SET time = time - 8 * 86400 * 1000000")
        for number in range(20, 23):
            answered(log, number)
        assert ResponseFollower(log, ledger).catch_up() == 3
        assert [ledger.conversation_of(f"r{number}") for number in (19, 20, 22)] == [None, "c20", "c22"]
        assert sum(ledger.positions().values()) == 23
        answered(log, 23)
        assert ResponseFollower(log, ledger).catch_up() == 1


def test_a_log_that_was_made_anew_is_read_anew(
    tmp_path: Path, log: EventLog, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(40):
        answered(log, number)
    ResponseFollower(log, ledger).catch_up()
    with SqliteLog(tmp_path / "new.db") as new:
        new.ensure_topics()
        for number in range(100, 104):
            answered(new, number)
        assert ResponseFollower(new, ledger).catch_up() == 4
    assert [ledger.conversation_of(f"r{number}") for number in range(100, 104)] == ["c100", "c101", "c102", "c103"]
    assert "this is another log" in caplog.text


def test_positions_belong_to_one_log(tmp_path: Path) -> None:
    opened = Ledger(tmp_path / "ledger.db")
    opened.add_responses([("r1", "c1", "app")], {0: 7, 1: 9})
    assert opened.belong_to("kafka a:9092 ") is False  # of the release before, which noted no log
    assert opened.positions() == {0: 7, 1: 9}
    opened.close()
    again = Ledger(tmp_path / "ledger.db")
    assert again.belong_to("kafka a:9092 ") is False
    assert again.positions() == {0: 7, 1: 9}
    assert again.belong_to("kafka a:9092 loop.") is True
    assert again.positions() == {}
    assert again.conversation_of("r1") == "c1"
    again.close()


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("kafka://b:9092,a:9092/loop.", "kafka://a,b/loop./"),
        ("sqlite:///var/lib/log.db", "sqlite:///var/lib/../lib/log.db"),
    ],
)
def test_one_log_has_one_identity(url: str, same: str) -> None:
    assert log_identity(url) == log_identity(same)


@pytest.mark.parametrize(
    ("url", "other"),
    [
        ("kafka://a/loop.", "kafka://a/"),
        ("kafka://a/loop.", "kafka://b/loop."),
        ("sqlite:///a.db", "sqlite:///b.db"),
        ("sqlite:///a", "kafka://a"),
    ],
)
def test_two_logs_have_two_identities(url: str, other: str) -> None:
    assert log_identity(url) != log_identity(other)


OF_BEFORE = "CREATE TABLE responses (response_id TEXT PRIMARY KEY, conversation_id TEXT NOT NULL)"


def test_a_ledger_of_a_release_that_noted_no_principal_gives_its_answers_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as old, old:
        old.execute(OF_BEFORE)
        old.execute("INSERT INTO responses VALUES ('r1', 'c1')")
    for _ in range(2):
        opened = Ledger(path)
        assert (opened.conversation_of("r1"), opened.principal_of("r1"), opened.principal_of("r2")) == ("c1", "", None)
        opened.close()


def test_the_release_before_works_on_with_the_ledger_after_a_rollback(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    opened = Ledger(path)
    opened.add_responses([("r1", "c1", "app")])
    opened.close()
    with closing(sqlite3.connect(path)) as old, old:
        old.execute(OF_BEFORE.replace("TABLE", "TABLE IF NOT EXISTS"))
        old.executemany("INSERT OR REPLACE INTO responses VALUES (?, ?)", [("r1", "c1"), ("r2", "c2")])
    again = Ledger(path)
    assert [(again.conversation_of(name), again.principal_of(name)) for name in ("r1", "r2")] == [
        ("c1", "app"),
        ("c2", ""),
    ]
    again.close()


def test_a_response_stays_whose_it_was(ledger: Ledger) -> None:
    ledger.add_responses([("r1", "c1", "victim"), ("old", "c1", "")])
    ledger.add_responses([("r1", "c2", "thief")])
    assert (ledger.conversation_of("r1"), ledger.principal_of("r1")) == ("c1", "victim")
    ledger.add_responses([("r1", "c1", ""), ("old", "c1", "app")])  # the log says who was answered
    assert (ledger.principal_of("r1"), ledger.principal_of("old")) == ("victim", "app")
