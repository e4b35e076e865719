"""The outbox on a disk that is full, slow to sync, or lost what it held."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anyloop.log import RESPONSES, Event, EventLog, LogError, spool_segments
from anyloop.log.spool import Fsync, SpooledWriter
from anyloop.log.spool_segments import SegmentWriter, sync_directory
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2


def event(number: int, size: int = 0) -> Event:
    message = events_pb2.ResponseEvent(response_id=str(number), metadata={"filler": "x" * size})
    return Event.wrap(message, key="k", source="tests", id=str(number))


@pytest.fixture
def open_log(tmp_path: Path) -> Callable[[], EventLog]:
    def opener() -> EventLog:
        log = SqliteLog(tmp_path / "log.db")
        log.ensure_topics()
        return log

    return opener


def away() -> EventLog:
    raise LogError("the broker is away", retriable=True)


def stored(open_log: Callable[[], EventLog]) -> list[int]:
    with open_log() as log:
        return [int(record.event.id) for record in log.read(RESPONSES)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and nine files. Needs root; the gateway's tests have a full disk without."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=9", "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"no small disk: {done.stderr}")
        pytest.skip(f"a small disk needs root: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def put_soon(spool: SpooledWriter, one: Event) -> None:
    """Room comes back a moment after the last event is sent, with the segment's file."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return spool.put(RESPONSES, one)
        except LogError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def fill(spool: SpooledWriter, first: int, size: int) -> int:
    """Puts until the disk refuses; returns the number of the one refused."""
    number = first
    with pytest.raises(LogError, match=r"cannot be written: \[Errno 28\] No space left on device") as caught:  # noqa: PT012
        while True:
            spool.put(RESPONSES, event(number, size))
            number += 1
    assert caught.value.retriable
    assert spool.refuses() == str(caught.value)
    return number


@pytest.mark.parametrize("fsync", ["always", "never"])
def test_a_full_disk_refuses_and_takes_events_again_when_there_is_room(
    open_log: Callable[[], EventLog], small_disk: Path, fsync: Fsync
) -> None:
    with SpooledWriter(away, small_disk / "spool", fsync=fsync) as spool:
        refused = fill(spool, 0, 5000)
        assert refused > 100
        with pytest.raises(LogError):
            spool.put(RESPONSES, event(refused, 5000))
        assert spool.pending_bytes == sum(one.stat().st_size for one in (small_disk / "spool").glob("*.segment"))
    # The next process has no room for its state either; sending what is there makes some.
    with SpooledWriter(open_log, small_disk / "spool", fsync=fsync) as spool:
        assert spool.flush(10)
        put_soon(spool, event(refused, 5000))
        assert spool.refuses() is None
        assert spool.flush(10)
    assert stored(open_log) == list(range(refused + 1))


def test_a_segment_that_is_written_and_sent_gives_its_room_back(
    open_log: Callable[[], EventLog], small_disk: Path
) -> None:
    back: list[EventLog] = []
    with SpooledWriter(lambda: back.pop() if back else away(), small_disk / "spool") as spool:
        refused = fill(spool, 0, 5000)  # all of it in one segment, which has room for more
        back.append(open_log())
        assert spool.flush(10)
        put_soon(spool, event(refused, 5000))
        for number in range(refused + 1, refused + 100):
            spool.put(RESPONSES, event(number, 5000))
        assert spool.flush(10)
    assert stored(open_log) == list(range(refused + 100))


def test_draining_goes_on_where_nothing_can_be_noted(
    open_log: Callable[[], EventLog], small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with SpooledWriter(away, small_disk / "spool") as spool:
        for number in range(20):
            spool.put(RESPONSES, event(number))
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)
    with SpooledWriter(open_log, small_disk / "spool") as spool:
        assert spool.flush(10)
        (small_disk / "filler").unlink()
        spool.put(RESPONSES, event(20))
        assert spool.flush(10)
    assert stored(open_log) == list(range(21))
    assert caplog.text.count("cannot be noted") == 1
    assert (small_disk / "spool" / "state").stat().st_size > 0


def test_a_disk_without_room_for_another_segment_refuses_until_it_has(
    open_log: Callable[[], EventLog], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyloop.log.spool_folder._SEGMENT_BYTES", 2000)
    with SpooledWriter(away, small_disk / "spool") as spool:
        refused = fill(spool, 0, 300)
    assert refused > 5
    with SpooledWriter(open_log, small_disk / "spool") as spool:
        assert spool.flush(10)
        for number in range(refused, refused + 50):
            spool.put(RESPONSES, event(number, 300))
            assert spool.flush(10)
    assert stored(open_log) == list(range(refused + 50))


def test_what_could_not_be_synced_is_refused_and_never_sent(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(writer: SegmentWriter) -> None:
        writer.broken = True
        raise OSError(5, "Input/output error")

    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(0))
        with monkeypatch.context() as patch:
            patch.setattr(SegmentWriter, "sync", failing)
            with pytest.raises(LogError, match="Input/output error") as caught:
                spool.put(RESPONSES, event(1))
            assert caught.value.retriable
        spool.put(RESPONSES, event(2))
        assert spool.flush(10)
        assert spool.disk_trouble is None
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == [0, 2]


@pytest.mark.parametrize("rotated", [True, False])
def test_what_could_be_neither_synced_nor_cut_off_is_not_sent_either(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rotated: bool
) -> None:
    def failing(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            patch.setattr(os, "ftruncate", failing)
            with pytest.raises(LogError, match="Input/output error"):
                spool.put(RESPONSES, event(1))
        if rotated:
            spool.put(RESPONSES, event(2))
        assert spool.flush(10)
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == [0, *([2] if rotated else [])]


def test_a_closed_outbox_leaves_nothing_that_was_refused(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    with SpooledWriter(away, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            patch.setattr(os, "ftruncate", failing)
            with pytest.raises(LogError, match="Input/output error"):
                spool.put(RESPONSES, event(1))
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
    assert stored(open_log) == [0]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def failing_once(error: OSError) -> Callable[..., None]:
    failures = [error]

    def instead(path: Path) -> None:
        if failures:
            raise failures.pop()
        sync_directory(path)

    return instead


def test_a_segment_that_could_not_be_begun_leaves_nothing_behind(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        monkeypatch.setattr(spool_segments, "sync_directory", failing_once(OSError(24, "Too many open files")))
        before = open_files()
        with pytest.raises(LogError, match="Too many open files"):
            spool.put(RESPONSES, event(0))
        assert open_files() == before
        assert not list((tmp_path / "spool").glob("*.segment"))
        spool.put(RESPONSES, event(1))
        assert spool.flush(10)
    assert stored(open_log) == [1]


def test_a_segment_that_stays_behind_does_not_stop_the_outbox(
    open_log: Callable[[], EventLog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        monkeypatch.setattr(spool_segments, "sync_directory", failing_once(OSError(5, "Input/output error")))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", failing_once(OSError(30, "Read-only file system")))
            with pytest.raises(LogError, match="Input/output error"):
                spool.put(RESPONSES, event(0))
        assert list((tmp_path / "spool").glob("*.segment"))
        spool.put(RESPONSES, event(1))
        assert spool.flush(10)
    assert stored(open_log) == [1]


@pytest.mark.parametrize(("fsync", "syncs"), [("always", 20), ("interval", 1), ("never", 0)])
def test_the_policy_says_when_the_disk_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, syncs: int
) -> None:
    with SpooledWriter(away, tmp_path / "spool", fsync=fsync, fsync_ms=100) as spool:
        time.sleep(0.15)
        done = []
        sync = SegmentWriter.sync
        monkeypatch.setattr(SegmentWriter, "sync", lambda writer: (done.append(1), sync(writer)))
        for number in range(20):
            spool.put(RESPONSES, event(number))
        time.sleep(0.3)
        assert (len(done) in (1, 2)) if fsync == "interval" else (len(done) == syncs)
        assert spool._folder._writer is not None
        assert (spool._folder._writer.synced == spool._folder._writer.size) == (fsync != "never")


def test_what_precedes_a_damaged_frame_is_sent(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    with SpooledWriter(away, tmp_path / "spool") as spool:
        for number in range(3):
            spool.put(RESPONSES, event(number))
    (segment,) = (tmp_path / "spool").glob("*.segment")
    with segment.open("ab") as file:
        file.write(bytes(64))  # as a power failure leaves it that grew the file and wrote nothing
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(3))
        assert spool.flush(10)
    assert stored(open_log) == [0, 1, 2, 3]
    assert segment.with_name(segment.name + ".corrupted").exists()


def test_waiting_for_the_log_costs_no_loop(open_log: Callable[[], EventLog], tmp_path: Path) -> None:
    attempts = []

    def counted() -> EventLog:
        attempts.append(1)
        return away()

    with SpooledWriter(counted, tmp_path / "spool") as spool:
        spool.put(RESPONSES, event(0))
        time.sleep(1.5)
        assert 2 <= len(attempts) <= 7  # after 0.1, 0.2, 0.4 and 0.8 seconds, or half of that
        assert spool.log_trouble == "the broker is away"
        assert 1.4 < spool.oldest_seconds() < 3
    with SpooledWriter(open_log, tmp_path / "spool") as spool:
        assert spool.flush(10)
        assert spool.oldest_seconds() == 0
        before = time.thread_time(), time.process_time()
        time.sleep(0.5)
        assert time.process_time() - before[1] < 0.05


def test_the_wait_after_a_failure_begins_anew_while_more_is_waiting(
    tmp_path: Path, open_log: Callable[[], EventLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anyloop.log.spool_folder._BATCH_EVENTS", 1)
    monkeypatch.setattr("anyloop.log.spool_drain._SETTLE_SECONDS", 0.0)
    tried: set[str] = set()

    class FailsAtFirst(SqliteLog):
        def append_many(self, topic: str, events):
            if events[0].id not in tried:
                tried.add(events[0].id)
                raise LogError("not now", retriable=True)
            return super().append_many(topic, events)

    open_log().close()
    spool = SpooledWriter(lambda: FailsAtFirst(tmp_path / "log.db"), tmp_path / "spool", fsync="never")
    for number in range(8):
        spool.put(RESPONSES, event(number))
    with spool:
        assert spool.flush(4)  # eight waits of 0.1 s; doubled each time they would be 7 s at least
    assert stored(open_log) == list(range(8))


def test_batches_are_large_when_much_is_waiting(tmp_path: Path, open_log: Callable[[], EventLog]) -> None:
    sizes = []

    class Counting(SqliteLog):
        def append_many(self, topic: str, events):
            sizes.append(len(events))
            return super().append_many(topic, events)

    open_log().close()
    spool = SpooledWriter(lambda: Counting(tmp_path / "log.db"), tmp_path / "spool", fsync="never")
    for number in range(1200):
        spool.put(RESPONSES, event(number))
    with spool:
        assert spool.flush(20)
    assert sizes == [500, 500, 200]
    assert stored(open_log) == list(range(1200))
