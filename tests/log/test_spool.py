import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anyloop.log import FEEDBACK, MAX_EVENT_BYTES, RESPONSES, Event, EventLog, EventTooLarge, LogError, SpoolFull
from anyloop.log.spool import SpooledWriter
from anyloop.log.spool_segments import SegmentWriter, frames
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2

ROOT = Path(__file__).parent.parent.parent


def event(number: int, size: int = 0) -> Event:
    message = events_pb2.ResponseEvent(response_id=str(number), metadata={"filler": "x" * size})
    return Event.wrap(message, key="k", source="tests", id=str(number))


@pytest.fixture
def open_log(tmp_path: Path) -> Callable[[], EventLog]:
    """The log, its topics created."""

    def opener() -> EventLog:
        log = SqliteLog(tmp_path / "log.db")
        log.ensure_topics()
        return log

    return opener


def away() -> EventLog:
    raise LogError("the broker is away", retriable=True)


def stored(open_log: Callable[[], EventLog], topic: str = RESPONSES) -> list[str]:
    with open_log() as log:
        return [record.event.id for record in log.read(topic)]


def test_events_reach_the_log_in_order(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        for number in range(30):
            spool.put(RESPONSES, event(number))
        spool.put(FEEDBACK, event(99))
        assert spool.flush(10)
        assert spool.pending_bytes == 0
    assert stored(open_log) == [str(number) for number in range(30)]
    assert stored(open_log, FEEDBACK) == ["99"]


def test_events_wait_on_disk_while_the_log_is_away_and_a_later_process_sends_them(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    with SpooledWriter(away, tmp_path / "spool") as spool:
        for number in range(5):
            spool.put(RESPONSES, event(number))
        assert not spool.flush(0.2)
        assert spool.pending_bytes > 0
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(5))
        assert spool.flush(10)
    assert stored(open_log) == ["0", "1", "2", "3", "4", "5"]


def test_a_log_that_comes_back_gets_everything(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    attempts = []

    def third_time_lucky() -> EventLog:
        attempts.append(1)
        return open_log() if len(attempts) > 2 else away()

    with SpooledWriter(third_time_lucky, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(1))
        assert spool.flush(10)
    assert len(attempts) == 3
    assert stored(open_log) == ["1"]


def test_nothing_sent_is_sent_again_after_an_orderly_restart(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    for number in range(3):
        with SpooledWriter(open_log, tmp_path / "spool") as spool:
            assert spool.pending_bytes == 0
            spool.put(RESPONSES, event(number))
            assert spool.flush(10)
    assert stored(open_log) == ["0", "1", "2"]


def test_a_new_segment_is_never_read_from_the_cursor_of_an_old_one(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    with SpooledWriter(open_log, folder) as spool:
        for number in range(3):
            spool.put(RESPONSES, event(number))
        assert spool.flush(10)
    with SpooledWriter(open_log, folder):  # says nothing, and removes the segment that is sent
        deadline = time.monotonic() + 10
        while list(folder.glob("*.segment")) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not list(folder.glob("*.segment"))
    with SpooledWriter(away, folder) as spool:
        spool.put(RESPONSES, event(3))
    with SpooledWriter(open_log, folder) as spool:
        assert spool.pending_bytes > 0
        assert spool.flush(10)
    assert stored(open_log) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("fsync", ["always", "interval", "never"])
def test_a_killed_process_loses_nothing_it_accepted(
    open_log: Callable[[], EventLog], tmp_path: Path, fsync: str
) -> None:
    program = f"""
import itertools, sys
from pathlib import Path
from anyloop.log import Event, LogError, RESPONSES
from anyloop.log.spool import SpooledWriter
from protos.anyloop.v1 import events_pb2
def away():
    raise LogError("away", retriable=True)
spool = SpooledWriter(away, Path({str(tmp_path / "spool")!r}), fsync={fsync!r}).start()
for number in itertools.count():
    spool.put(RESPONSES, Event.wrap(events_pb2.ResponseEvent(), key="k", source="s", id=str(number)))
    print(number, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    output = process.stdout.read()
    process.stdout.close()
    process.wait(20)
    accepted = 50 + output.count("\n")
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(20)
    found = stored(open_log)
    assert found[:accepted] == [str(number) for number in range(accepted)]
    assert len(found) <= accepted + 1  # one may have been written and not yet acknowledged


def test_the_bound_is_kept_and_lifts_when_the_log_takes_events(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    back = threading.Event()
    with SpooledWriter(lambda: open_log() if back.is_set() else away(), tmp_path / "spool", max_bytes=10_000) as spool:
        for number in range(8):  # 8 events of 1,000 bytes and their headers
            spool.put(RESPONSES, event(number, 1000))
        with pytest.raises(SpoolFull, match="bound 10000") as caught:
            spool.put(RESPONSES, event(8, 1000))
        assert caught.value.retriable
        assert sum(path.stat().st_size for path in (tmp_path / "spool").iterdir()) <= 10_000
        back.set()
        assert spool.flush(10)
        spool.put(RESPONSES, event(100))
        assert spool.flush(10)
    assert stored(open_log) == ["0", "1", "2", "3", "4", "5", "6", "7", "100"]


def test_an_event_too_large_for_the_log_is_refused_at_once(tmp_path: Path) -> None:
    spool = SpooledWriter(away, tmp_path / "spool")
    with pytest.raises(EventTooLarge):
        spool.put(RESPONSES, event(1, MAX_EVENT_BYTES))
    assert spool.pending_bytes == 0
    spool.close()


def test_segments_rotate_and_vanish_when_they_are_sent(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyloop.log.spool_folder._SEGMENT_BYTES", 2000)
    with SpooledWriter(away, tmp_path / "spool") as spool:
        for number in range(20):
            spool.put(RESPONSES, event(number, 300))
    assert len(list((tmp_path / "spool").glob("*.segment"))) > 3
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
        deadline = time.monotonic() + 10
        while list((tmp_path / "spool").glob("*.segment")) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert list((tmp_path / "spool").glob("*.segment")) == []
    assert stored(open_log) == [str(number) for number in range(20)]


def test_threads_keep_their_own_order_across_rotations(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyloop.log.spool_folder._SEGMENT_BYTES", 3000)

    def write(thread: int) -> None:
        for number in range(40):
            spool.put(RESPONSES, event(thread * 100 + number))

    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert spool.flush(20)
    found = [int(name) for name in stored(open_log)]
    assert len(found) == 200
    assert all([n for n in found if n // 100 == t] == list(range(t * 100, t * 100 + 40)) for t in range(5))


def test_an_event_cut_short_by_a_crash_is_dropped_and_the_rest_is_sent(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    with SpooledWriter(away, tmp_path / "spool") as spool:
        for number in range(3):
            spool.put(RESPONSES, event(number))
    (segment,) = (tmp_path / "spool").glob("*.segment")
    os.truncate(segment, segment.stat().st_size - 5)
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == ["0", "1"]


def test_a_segment_that_changed_on_disk_is_set_aside_and_later_ones_are_sent(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    for number in range(2):
        with SpooledWriter(away, tmp_path / "spool") as spool:
            spool.put(RESPONSES, event(number))
    first, _ = sorted((tmp_path / "spool").glob("*.segment"))
    data = bytearray(first.read_bytes())
    data[40] ^= 0xFF
    first.write_bytes(data)
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == ["1"]
    assert first.with_name(first.name + ".corrupted").exists()


def test_one_event_the_log_finds_too_large_does_not_hold_up_the_others(
    open_log: Callable[[], EventLog], tmp_path: Path
) -> None:
    class Strict(SqliteLog):
        def append_many(self, topic: str, events):
            if any(item.id == "1" for item in events):
                raise EventTooLarge("over the broker's limit")
            return super().append_many(topic, events)

    open_log().close()
    with SpooledWriter(lambda: Strict(tmp_path / "log.db"), tmp_path / "spool") as spool:
        for number in range(3):
            spool.put(RESPONSES, event(number))
        assert spool.flush(10)
    assert stored(open_log) == ["0", "2"]
    (kept,) = (tmp_path / "spool" / "rejected").glob("*.segment")
    assert [item.id for _, _, item in frames(kept, 0)] == ["1"]
    assert "over the broker's limit" in kept.with_suffix(".reason").read_text()


def test_a_second_process_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    first = SpooledWriter(away, tmp_path / "spool")
    with pytest.raises(LogError, match="in use by another process"):
        SpooledWriter(away, tmp_path / "spool")
    first.close()
    SpooledWriter(away, tmp_path / "spool").close()


def test_a_failing_disk_is_reported_and_later_events_go_to_a_new_segment(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(0))
        with monkeypatch.context() as patch:
            patch.setattr(SegmentWriter, "write", broken_write)
            with pytest.raises(LogError, match="No space left") as caught:
                spool.put(RESPONSES, event(1))
        assert caught.value.retriable
        spool.put(RESPONSES, event(2))
        assert spool.flush(10)
    assert stored(open_log) == ["0", "2"]


def broken_write(writer: SegmentWriter, frame: bytes) -> None:
    os.write(writer._descriptor, frame[:10])
    writer.broken = True
    raise OSError(28, "No space left on device")


def test_a_draining_thread_that_dies_says_why(tmp_path: Path) -> None:
    def misconfigured() -> EventLog:
        raise ValueError("no such log")

    with SpooledWriter(misconfigured, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(1))
        assert not spool.flush(5)
        assert str(spool.failure) == "no such log"
        spool.put(RESPONSES, event(2))  # still accepted: on disk for a process that is configured better


def test_a_closed_spool_refuses_events(tmp_path: Path) -> None:
    spool = SpooledWriter(away, tmp_path / "spool").start()
    spool.close()
    spool.close()
    with pytest.raises(LogError, match="closed"):
        spool.put(RESPONSES, event(1))
