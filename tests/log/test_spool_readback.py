"""What may have reached the log already is looked up there before it is sent again."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, LogError, Position, Record
from anyloop.log import spool_readback as readback
from anyloop.log.spool import SpooledWriter
from anyloop.log.spool_state import DrainState, StateFile
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2

ROOT = Path(__file__).parent.parent.parent


def event(number: int) -> Event:
    return Event.wrap(events_pb2.ResponseEvent(), key=f"k{number % 7}", source="tests", id=str(number))


@pytest.fixture
def open_log(tmp_path: Path) -> Callable[[], EventLog]:
    def opener() -> EventLog:
        log = SqliteLog(tmp_path / "log.db")
        log.ensure_topics()
        return log

    return opener


def stored(open_log: Callable[[], EventLog], topic: str = RESPONSES) -> list[int]:
    with open_log() as log:
        return sorted(int(record.event.id) for record in log.read(topic))


@pytest.mark.parametrize("cut_short", [False, True])
def test_a_process_killed_between_the_append_and_its_note_repeats_nothing(
    open_log: Callable[[], EventLog], tmp_path: Path, cut_short: bool
) -> None:
    program = f"""
import os, signal
from pathlib import Path
from anyloop.log import Event, RESPONSES
from anyloop.log import spool_folder
from anyloop.log.spool import SpooledWriter
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2
spool_folder._BATCH_EVENTS = 10
class Fatal(SqliteLog):
    calls = 0
    def append_many(self, topic, events):
        Fatal.calls += 1
        if Fatal.calls < 3:
            return super().append_many(topic, events)
        super().append_many(topic, events[:4] if {cut_short} else events)
        os.kill(os.getpid(), signal.SIGKILL)
spool = SpooledWriter(lambda: Fatal(Path({str(tmp_path / "log.db")!r})), Path({str(tmp_path / "spool")!r}))
for number in range(50):
    spool.put(RESPONSES, Event.wrap(events_pb2.ResponseEvent(), key=f"k{{number % 7}}", source="s", id=str(number)))
spool.start().flush(20)
"""
    open_log().close()
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert stored(open_log) == list(range(24 if cut_short else 30))
    with open_log() as log:  # others go on meanwhile
        log.append_many(RESPONSES, [event(number) for number in range(1000, 1500)])
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == [*range(50), *range(1000, 1500)]


def test_an_append_whose_answer_was_lost_is_not_repeated(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    class Lossy(SqliteLog):
        calls = 0

        def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
            done = super().append_many(topic, events)
            Lossy.calls += 1
            if Lossy.calls in (1, 2, 4):
                raise LogError("the connection broke", retriable=True)
            return done

    open_log().close()
    with SpooledWriter(lambda: Lossy(tmp_path / "log.db"), tmp_path / "spool") as spool:
        for number in range(20):
            spool.put(RESPONSES, event(number))
            spool.put(FEEDBACK, event(number))
        assert spool.flush(10)
    assert (stored(open_log), stored(open_log, FEEDBACK)) == (list(range(20)), list(range(20)))


def test_a_note_that_a_power_failure_took_back_costs_a_look_and_no_repetition(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyloop.log.spool_folder._BATCH_EVENTS", 5)
    folder = tmp_path / "spool"
    with SpooledWriter(open_log, folder) as spool:
        for number in range(10):
            spool.put(RESPONSES, event(number))
        assert spool.flush(10)
    shutil.copy(folder / "state", tmp_path / "older")
    (segment,) = folder.glob("*.segment")
    first = segment.read_bytes()
    with SpooledWriter(open_log, folder) as spool:
        for number in range(10, 60):
            spool.put(RESPONSES, event(number))
        assert spool.flush(10)
    (segment,) = folder.glob("*.segment")
    later = segment.read_bytes()
    segment.unlink()
    (folder / "000000000000.segment").write_bytes(first + later)
    shutil.copy(tmp_path / "older", folder / "state")
    with SpooledWriter(open_log, folder) as spool:
        assert spool.pending_bytes == len(later)
        spool.put(RESPONSES, event(60))
        assert spool.flush(10)
    assert stored(open_log) == list(range(61))


def test_the_look_is_bounded_in_records_and_in_time(
    open_log: Callable[[], EventLog], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_log() as log:
        others = [Event.wrap(events_pb2.ResponseEvent(), key="k0", source="s", id=str(n)) for n in range(100)]
        (part,) = {position.partition for position in log.append_many(RESPONSES, others)}
        mine = event(0)
        log.append(RESPONSES, mine)
        ends = log.end_offsets(RESPONSES)
        now = datetime.now(UTC).timestamp()
        assert readback.find(log, RESPONSES, [mine], {part: 0}, ends, now) == {"0": (part, 0)}
        assert readback.find(log, RESPONSES, [mine], {part: 1}, ends, now) == {"0": (part, 100)}
        assert readback.find(log, RESPONSES, [mine], {part: 101}, ends, now) == {}
        monkeypatch.setattr(readback, "_RECORDS", 50)
        assert readback.find(log, RESPONSES, [mine], {part: 1}, ends, now) == {}
        assert "looked for 1 events in 50 records" in caplog.text
        monkeypatch.undo()
        read: list[Record] = []
        original = log.read
        monkeypatch.setattr(log, "read", lambda *a, **k: (read.append(one) or one for one in original(*a, **k)))
        hour_ago = (datetime.now(UTC) - timedelta(hours=1)).timestamp()
        assert readback.find(log, RESPONSES, [mine], {part: 1}, ends, hour_ago) == {}
        assert len(read) == 1


def test_nothing_is_looked_up_after_an_orderly_stop(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    class Unread(SqliteLog):
        def read(self, *args: object, **kwargs: object) -> object:  # type: ignore[override]
            raise AssertionError("nothing was under way")

    open_log().close()
    for number in range(3):
        with SpooledWriter(lambda: Unread(tmp_path / "log.db"), tmp_path / "spool") as spool:
            spool.put(RESPONSES, event(number))
            assert spool.flush(10)
            assert spool.failure is None
    assert stored(open_log) == [0, 1, 2]


def test_a_state_cut_short_leaves_the_one_before_it(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    assert file.load() == DrainState("", 0, {}, pytest.approx(datetime.now().timestamp(), abs=60))
    for number in range(1, 4):
        file.save(DrainState(f"{number}.segment", number, {RESPONSES: {0: number, 11: 7}}, 1.5))
    file.close()
    assert StateFile(tmp_path / "state").load() == DrainState("3.segment", 3, {RESPONSES: {0: 3, 11: 7}}, 1.5)
    whole = (tmp_path / "state").read_bytes()
    at = whole.index(b"3.segment")
    (tmp_path / "state").write_bytes(whole[:at] + b"9" + whole[at + 1 :])
    assert StateFile(tmp_path / "state").load().name == "2.segment"
    (tmp_path / "state").write_bytes(b"")
    assert StateFile(tmp_path / "state").load().name == ""


@pytest.mark.parametrize("other", [False, True])
def test_events_left_by_a_process_whose_state_is_lost_are_looked_up(
    open_log: Callable[[], EventLog], tmp_path: Path, other: bool
) -> None:
    """As a power failure leaves it: the event on the disk and in the log, and no note that it was sent; at most one
    of another topic."""

    class Unanswered(SqliteLog):
        def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
            super().append_many(topic, events)
            answered.wait(30)
            raise LogError("no answer", retriable=True)

    answered = threading.Event()
    open_log().close()
    folder = tmp_path / "spool"
    spool = SpooledWriter(lambda: Unanswered(tmp_path / "log.db"), folder).start()
    spool.put(RESPONSES, event(0))
    deadline = time.monotonic() + 10
    while not stored(open_log):
        assert time.monotonic() < deadline
    answered.set()
    spool.close()
    (folder / "state").unlink()
    if other:
        file = StateFile(folder / "state")
        file.save(DrainState(marks={FEEDBACK: {0: 0}}))
        file.close()
    with SpooledWriter(open_log, folder) as spool:
        spool.put(RESPONSES, event(1))
        assert spool.flush(10)
    assert stored(open_log) == [0, 1]


def test_the_first_state_of_a_process_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    original = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        original(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    for _ in range(2):
        file = StateFile(tmp_path / "state")
        for number in range(3):
            file.save(DrainState("1.segment", number))
        file.close()
    assert synced == [str(tmp_path / "state"), str(tmp_path)] * 2


def test_the_cursor_of_the_last_release_is_honoured(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    def away() -> EventLog:
        raise LogError("away", retriable=True)

    folder = tmp_path / "spool"
    with SpooledWriter(away, folder) as spool:
        spool.put(RESPONSES, event(0))
        sent = spool.pending_bytes
        spool.put(RESPONSES, event(1))
    (folder / "cursor").write_text(f'["000000000000.segment", {sent}]')
    with SpooledWriter(open_log, folder) as spool:
        assert spool.flush(10)
    assert stored(open_log) == [1]


def test_closing_does_not_wait_for_a_log_that_is_still_opened_and_that_log_is_closed(tmp_path: Path) -> None:
    opening, opened, closed = threading.Event(), threading.Event(), threading.Event()

    class Late(SqliteLog):
        def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
            raise AssertionError("the outbox is another's by now")

        def close(self) -> None:
            closed.set()
            super().close()

    def open_late() -> EventLog:
        opening.set()
        opened.wait(30)
        return Late(tmp_path / "log.db")

    spool = SpooledWriter(open_late, tmp_path / "spool").start()
    spool.put(RESPONSES, event(0))
    assert opening.wait(10)
    began = time.monotonic()
    spool.close()
    assert time.monotonic() - began < 6
    before = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "spool").iterdir())
    opened.set()
    assert closed.wait(10)
    spool._drainer.join(10)
    assert not spool._drainer.is_alive()
    assert spool.failure is None
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "spool").iterdir()) == before


def test_a_state_that_is_closed_is_not_written_any_more(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    file.save(DrainState("1.segment", 1))
    file.close()
    file.save(DrainState("1.segment", 2))
    assert StateFile(tmp_path / "state").load().cursor == 1


def test_closing_does_not_wait_for_a_log_that_hangs(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    closed = threading.Event()

    class Hanging(SqliteLog):
        def append_many(self, topic: str, events: Sequence[Event]) -> list[Position]:
            closed.wait(30)
            raise LogError("this log is closed")

        def close(self) -> None:
            closed.set()
            super().close()

    open_log().close()
    spool = SpooledWriter(lambda: Hanging(tmp_path / "log.db"), tmp_path / "spool").start()
    spool.put(RESPONSES, event(0))
    while spool._log is None:
        threading.Event().wait(0.01)
    spool.close()
    assert closed.is_set()
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == [0]
