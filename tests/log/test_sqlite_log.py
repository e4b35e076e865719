"""What is particular to the embedded log; its behaviour as a log is in the contract suite."""

import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from anyloop.log import RESPONSES, TOPICS, CommitFailed, Event, LogError, Record, open_log
from anyloop.log.sqlite_database import Database
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2


def event(number: int) -> Event:
    return Event.wrap(events_pb2.ResponseEvent(response_id=str(number)), key="k", source="tests", id=str(number))


def test_a_url_with_spaces_and_missing_folders_opens(tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/a%20b/c/log.db") as log:
        log.ensure_topics()
    assert (tmp_path / "a b" / "c" / "log.db").exists()


def test_commits_reach_the_disk_before_they_are_acknowledged(tmp_path: Path) -> None:
    database = Database(tmp_path / "log.db")
    assert database.rows("PRAGMA journal_mode") == [("wal",)]
    assert database.rows("PRAGMA synchronous") == [(2,)]  # FULL
    assert database.rows("PRAGMA busy_timeout") == [(30000,)]
    database.close()


def test_records_that_are_gone_are_no_lag(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        (part,) = {position.partition for position in log.append_many(RESPONSES, [event(n) for n in range(5)])}
        database = Database(tmp_path / "log.db")
        with database.transaction():
            database.execute("DELETE FROM records WHERE pos < 3")
        assert log.begin_offsets(RESPONSES)[part] == 3
        assert log.lag("g", [RESPONSES]) == 2
        with database.transaction():
            database.execute("DELETE FROM records")
        assert log.begin_offsets(RESPONSES) == log.end_offsets(RESPONSES)
        assert log.lag("g", [RESPONSES]) == 0
        database.close()


def test_many_openers_of_a_new_file_get_along(tmp_path: Path) -> None:
    errors: list[BaseException] = []
    created: list[str] = []

    def opener() -> None:
        try:
            with SqliteLog(tmp_path / "log.db") as log:
                created.extend(log.ensure_topics())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=opener) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert sorted(created) == sorted(spec.name for spec in TOPICS)


def test_a_file_that_is_no_database_is_refused_for_good(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"this is not a database, but it is long enough to look" * 50)
    with pytest.raises(LogError, match="not a database") as caught:
        SqliteLog(tmp_path / "log.db")
    assert not caught.value.retriable


def test_a_log_of_a_later_release_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "log.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(LogError, match="later release"):
        SqliteLog(tmp_path / "log.db")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LogError, match=r"file/log\.db"):
        SqliteLog(tmp_path / "file" / "log.db")


def test_a_failed_append_leaves_the_log_usable(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        blocker = sqlite3.connect(tmp_path / "log.db")
        blocker.execute("CREATE TRIGGER full BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'no room'); END")
        with pytest.raises(LogError, match="no room"):
            log.append(RESPONSES, event(1))
        blocker.execute("DROP TRIGGER full")
        blocker.close()
        assert log.append(RESPONSES, event(2)).offset == 0


def test_waiting_for_events_costs_next_to_nothing(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        with log.consumer("g", [RESPONSES]) as consumer:
            consumer.poll(timeout=0.1)
            before = time.thread_time()
            consumer.poll(timeout=1.0)
            # 20 wake-ups of some 100 microseconds each; a loop that queries all the time would take the whole second.
            assert time.thread_time() - before < 0.1


def test_closing_the_log_closes_its_consumers_and_frees_their_partitions(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "log.db")
    log.ensure_topics()
    consumer = log.consumer("g", [RESPONSES])
    consumer.poll(timeout=0.1)
    log.close()
    with pytest.raises(LogError, match="closed"):
        consumer.poll()
    database = Database(tmp_path / "log.db")
    assert database.rows("SELECT * FROM leases") == database.rows("SELECT * FROM members") == []
    database.close()


def test_a_member_that_polls_on_without_committing_hands_over_after_the_session_timeout(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db", session_timeout=0.6) as log:
        log.ensure_topics()
        # "abc" lies in partition 3 (murmur2 479470107), which goes to the second of two members.
        log.append_many(RESPONSES, [replace(event(number), key="abc") for number in range(3)])
        with log.consumer("g", [RESPONSES]) as one:
            assert len(one.poll()) == 3
            with log.consumer("g", [RESPONSES]) as two:
                began = time.monotonic()
                got: list[Record] = []
                while not got and time.monotonic() < began + 10:
                    one.poll(timeout=0.05)
                    got = two.poll(timeout=0.05)
                assert [record.event.id for record in got] == ["0", "1", "2"]
                assert time.monotonic() - began >= 0.6
                with pytest.raises(CommitFailed):
                    one.commit({(RESPONSES, 3): 3})
