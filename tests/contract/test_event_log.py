"""The contract of every event log. An implementation joins by one more entry in `BACKENDS` and in `open_backend`.

Other processes of a test run `appender.py` and `member.py` beside this file.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from anyloop.log import (
    FEEDBACK,
    RESPONSES,
    TOPICS,
    CommitFailed,
    Consumer,
    Event,
    EventLog,
    EventTooLarge,
    LogError,
    Record,
    TopicSpec,
    UnknownTopic,
    dlq,
)
from protos.anyloop.v1 import events_pb2
from tests.contract.backends import open_backend

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SESSION_TIMEOUT = 3.0


@dataclass(frozen=True)
class Backend:
    kind: str
    address: str

    def open(self, session_timeout: float | None = None) -> EventLog:
        """`session_timeout` is how long a group waits for a silent member; None is the production default."""
        return open_backend(self.kind, self.address, session_timeout)


def sqlite_address(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("tmp_path") / "log.db")


def kafka_address(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("kafka_url"))


# Kind -> the address of a new, empty log; `open_backend` opens it, here and in other processes.
BACKENDS: dict[str, Callable[[pytest.FixtureRequest], str]] = {"sqlite": sqlite_address, "kafka": kafka_address}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(request.param, BACKENDS[request.param](request))


@pytest.fixture
def log(backend: Backend) -> Iterator[EventLog]:
    with backend.open() as opened:
        opened.ensure_topics()
        yield opened


def event(number: int, key: str | None = None) -> Event:
    message = events_pb2.ResponseEvent(response_id=f"r{number}", output_token_ids=[number])
    return Event.wrap(message, key=f"k{number}" if key is None else key, source="tests", id=f"e{number}")


def append_same_key(log: EventLog, count: int) -> int:
    """Appends e0, e1, ... and returns the one partition they are in."""
    return log.append_many(RESPONSES, [event(number, "same") for number in range(count)])[0].partition


def ids(records: list[Record]) -> list[str]:
    return [record.event.id for record in records]


def drain(consumer: Consumer, count: int, *, seconds: float = 10.0, commit: bool = False) -> list[Record]:
    """Polls until `count` records have come."""
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count and time.monotonic() < deadline:
        records += consumer.poll(timeout=0.2)
        if commit:
            consumer.commit()
    return records


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


class TestTopics:
    def test_all_topics_but_the_audit_trail_have_a_dead_letter_topic_and_checkpoints_are_one_compacted_partition(
        self,
    ) -> None:
        names = {spec.name for spec in TOPICS}
        assert names == {
            f"anyloop.{name}.v1{suffix}"
            for name in ("responses", "feedback", "critiques", "checkpoints")
            for suffix in ("", ".dlq")
        } | {"anyloop.audit.v1"}
        checkpoints = next(spec for spec in TOPICS if spec.name == "anyloop.checkpoints.v1")
        assert (checkpoints.partitions, checkpoints.compacted) == (1, True)

    def test_creating_topics_twice_creates_nothing_the_second_time(self, backend: Backend) -> None:
        with backend.open() as log:
            assert sorted(log.ensure_topics()) == sorted(spec.name for spec in TOPICS)
            assert log.ensure_topics() == []

    def test_another_number_of_partitions_is_refused(self, log: EventLog) -> None:
        with pytest.raises(LogError, match="4 partitions, not 5"):
            log.ensure_topics([TopicSpec(RESPONSES, partitions=5)])

    def test_an_unknown_topic_is_refused_everywhere_and_never_created(self, log: EventLog) -> None:
        for attempt in (
            lambda: log.append("nowhere", event(1)),
            lambda: log.consumer("g", ["nowhere"]),
            lambda: log.begin_offsets("nowhere"),
            lambda: log.read("nowhere"),
            lambda: log.end_offsets("nowhere"),
        ):
            with pytest.raises(UnknownTopic, match="nowhere"):
                attempt()


class TestAppend:
    def test_an_event_comes_back_as_it_went_in(self, log: EventLog) -> None:
        before = datetime.now(UTC)
        sent = Event(
            id="e-1",
            source="services/policy",
            type="anyloop.v1.ResponseEvent",
            time=datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC),
            key="conversation ü",
            data=bytes(range(256)),
            extensions={"traceparent": "00-1-2-01"},
        )
        position = log.append(RESPONSES, sent)
        (record,) = log.read(RESPONSES)
        assert record.event == sent
        assert (record.topic, record.partition, record.offset) == (RESPONSES, position.partition, position.offset)
        assert before - timedelta(milliseconds=1) <= record.time <= datetime.now(UTC) + timedelta(milliseconds=1)

    def test_offsets_count_up_from_zero_in_each_partition(self, log: EventLog) -> None:
        seen: dict[int, list[int]] = defaultdict(list)
        for number in range(40):
            position = log.append(RESPONSES, event(number))
            seen[position.partition].append(position.offset)
        assert all(offsets == list(range(len(offsets))) for offsets in seen.values())
        assert log.end_offsets(RESPONSES) == {part: len(seen[part]) for part in range(4)}

    def test_one_key_keeps_one_partition_in_every_topic_of_equal_width(self, log: EventLog) -> None:
        for number in range(20):
            key = f"conversation-{number}"
            partitions = {
                log.append(topic, event(number, key)).partition for topic in (RESPONSES, FEEDBACK, dlq(RESPONSES))
            }
            assert len(partitions) == 1

    def test_keys_lie_where_kafkas_default_partitioner_puts_them(self, log: EventLog) -> None:
        # (murmur2(key) & 0x7fffffff) % 4, from the values of Kafka's own UtilsTest: 21 -> -973932308,
        # foobar -> -790332482, a-little-bit-long-string -> -985981536, a-little-bit-longer-string -> -1486304829.
        expected = {"21": 0, "foobar": 2, "a-little-bit-long-string": 0, "a-little-bit-longer-string": 3}
        assert {key: log.append(RESPONSES, event(1, key)).partition for key in expected} == expected

    def test_many_events_are_appended_in_order(self, log: EventLog) -> None:
        positions = log.append_many(RESPONSES, [event(number, "same") for number in range(50)])
        assert [position.offset for position in positions] == list(range(50))
        assert ids(list(log.read(RESPONSES))) == [f"e{number}" for number in range(50)]

    def test_a_repeated_event_id_is_appended_again(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        log.append(RESPONSES, event(1))
        assert ids(list(log.read(RESPONSES))) == ["e1", "e1"]

    def test_an_event_over_the_limit_is_refused_and_nothing_is_appended(self, log: EventLog) -> None:
        huge = Event("e", "tests", "anyloop.v1.ResponseEvent", datetime.now(UTC), "k", bytes(1_000_001))
        with pytest.raises(EventTooLarge) as caught:
            log.append(RESPONSES, huge)
        assert not caught.value.retriable
        assert list(log.read(RESPONSES)) == []

    def test_an_acknowledged_event_is_there_after_closing_and_opening_again(self, backend: Backend) -> None:
        with backend.open() as log:
            log.ensure_topics()
            log.append(RESPONSES, event(1))
        with backend.open() as log:
            assert ids(list(log.read(RESPONSES))) == ["e1"]

    def test_a_closed_log_says_so(self, backend: Backend) -> None:
        log = backend.open()
        log.ensure_topics()
        log.close()
        log.close()
        with pytest.raises(LogError):
            log.append(RESPONSES, event(1))


class TestConcurrentAppend:
    def test_threads_lose_and_repeat_nothing_and_each_keeps_its_order(self, log: EventLog) -> None:
        def write(thread: int) -> None:
            for number in range(40):
                log.append(RESPONSES, event(thread * 1000 + number, f"thread-{thread}"))

        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        by_key: dict[str, list[str]] = defaultdict(list)
        for record in log.read(RESPONSES):
            by_key[record.event.key].append(record.event.id)
        assert by_key == {f"thread-{t}": [f"e{t * 1000 + n}" for n in range(40)] for t in range(6)}

    def test_processes_lose_and_repeat_nothing_and_each_keeps_its_order(self, log: EventLog, backend: Backend) -> None:
        writers = [start("appender.py", backend, f"p{number}", "60") for number in range(3)]
        acknowledged = [line for writer in writers for line in finish(writer)]
        stored: dict[str, list[str]] = defaultdict(list)
        for record in log.read(RESPONSES):
            stored[record.event.key].append(record.event.id)
        assert stored == {f"p{p}": [f"p{p}-{n}" for n in range(60)] for p in range(3)}
        places = {f"{r.partition}:{r.offset}:{r.event.id}" for r in log.read(RESPONSES)}
        assert set(acknowledged) == places

    def test_killing_a_writer_loses_no_acknowledged_event(self, log: EventLog, backend: Backend) -> None:
        acknowledged: set[str] = set()
        for round_number in range(3):
            writer = start("appender.py", backend, f"killed{round_number}", "1000000")
            assert writer.stdout is not None
            for _ in range(25 + 7 * round_number):
                acknowledged.add(writer.stdout.readline().strip())
            writer.send_signal(signal.SIGKILL)
            rest, _ = writer.communicate(timeout=20)
            acknowledged |= {line for line in rest.splitlines(keepends=True) if line.endswith("\n")}
        acknowledged = {line.strip() for line in acknowledged}
        assert len(acknowledged) >= 25 + 32 + 39
        assert acknowledged <= {f"{r.partition}:{r.offset}:{r.event.id}" for r in log.read(RESPONSES)}
        # Nothing is torn, and the log takes events as before.
        assert all(record.event.unwrap() for record in log.read(RESPONSES))
        log.append(RESPONSES, event(1))


class TestReplay:
    def test_from_an_offset_of_a_partition(self, log: EventLog) -> None:
        part = append_same_key(log, 5)
        assert ids(list(log.read(RESPONSES, partition=part, offset=3))) == ["e3", "e4"]
        assert list(log.read(RESPONSES, partition=part, offset=5)) == []
        assert list(log.read(RESPONSES, partition=(part + 1) % 4)) == []

    def test_from_a_point_in_time(self, log: EventLog) -> None:
        for number in range(10):
            log.append(RESPONSES, event(number))
        time.sleep(0.02)
        middle = datetime.now(UTC)
        time.sleep(0.02)
        for number in range(10, 14):
            log.append(RESPONSES, event(number))
        assert sorted(ids(list(log.read(RESPONSES, since=middle)))) == ["e10", "e11", "e12", "e13"]
        assert len(list(log.read(RESPONSES, since=middle - timedelta(days=1)))) == 14
        assert list(log.read(RESPONSES, since=datetime.now(UTC) + timedelta(seconds=5))) == []

    def test_keeps_the_order_of_a_partition_over_many_pages(self, log: EventLog) -> None:
        for begin in range(0, 1200, 400):
            log.append_many(RESPONSES, [event(number) for number in range(begin, begin + 400)])
        offsets: dict[int, list[int]] = defaultdict(list)
        times: dict[int, list[datetime]] = defaultdict(list)
        for record in log.read(RESPONSES):
            offsets[record.partition].append(record.offset)
            times[record.partition].append(record.time)
        assert {part: len(found) for part, found in offsets.items()} == log.end_offsets(RESPONSES)
        assert all(found == list(range(len(found))) for found in offsets.values())
        assert all(found == sorted(found) for found in times.values())

    def test_a_limit_bounds_it(self, log: EventLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(10)])
        assert len(list(log.read(RESPONSES, limit=3))) == 3

    def test_ends_at_what_was_there_when_it_began(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        replay = log.read(RESPONSES)
        log.append(RESPONSES, event(2))
        assert ids(list(replay)) == ["e1"]

    def test_moves_no_group(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        list(log.read(RESPONSES))
        assert log.committed("g", RESPONSES) == {}

    @pytest.mark.parametrize(
        "arguments",
        [{"offset": 1}, {"partition": 4}, {"partition": 0, "offset": -1}, {"since": datetime(2025, 1, 1)}],
        ids=["offset-without-partition", "no-such-partition", "negative-offset", "naive-time"],
    )
    def test_nonsense_is_refused(self, log: EventLog, arguments: dict) -> None:
        with pytest.raises(ValueError):
            log.read(RESPONSES, **arguments)


class TestConsumer:
    def test_delivers_everything_once_in_order_of_each_key(self, log: EventLog) -> None:
        for number in range(60):
            log.append(RESPONSES, event(number, f"k{number % 7}"))
        with log.consumer("g", [RESPONSES]) as consumer:
            records = drain(consumer, 60)
            assert consumer.poll(timeout=0.1) == []
        by_key: dict[str, list[int]] = defaultdict(list)
        for record in records:
            by_key[record.event.key].append(int(record.event.id[1:]))
        assert sum(len(found) for found in by_key.values()) == 60
        assert all(found == sorted(found) for found in by_key.values())

    def test_reads_several_topics(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        log.append(FEEDBACK, event(2))
        with log.consumer("g", [RESPONSES, FEEDBACK]) as consumer:
            assert {(r.topic, r.event.id) for r in drain(consumer, 2)} == {(RESPONSES, "e1"), (FEEDBACK, "e2")}

    def test_a_poll_is_bounded_and_the_next_goes_on_behind_it(self, log: EventLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(25)])
        with log.consumer("g", [RESPONSES]) as consumer:
            seen: list[str] = []
            while batch := consumer.poll(max_records=10, timeout=0.5):
                assert len(batch) <= 10
                seen += ids(batch)
        assert sorted(seen) == sorted(f"e{number}" for number in range(25))

    def test_an_event_wakes_a_waiting_poll(self, log: EventLog) -> None:
        with log.consumer("g", [RESPONSES]) as consumer:
            consumer.poll(timeout=0.1)
            timer = threading.Timer(0.3, log.append, (RESPONSES, event(1)))
            timer.start()
            began = time.monotonic()
            assert ids(consumer.poll(timeout=10.0)) == ["e1"]
            assert time.monotonic() - began < 5.0
            timer.join()

    def test_an_empty_poll_returns_after_its_timeout(self, log: EventLog) -> None:
        with log.consumer("g", [RESPONSES]) as consumer:
            began = time.monotonic()
            assert consumer.poll(timeout=0.3) == []
            assert 0.25 <= time.monotonic() - began < 5.0

    def test_what_is_committed_is_not_delivered_again_and_the_rest_is(self, log: EventLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(20)])
        with log.consumer("g", [RESPONSES]) as consumer:
            first = consumer.poll(max_records=8, timeout=5.0)
            consumer.commit()
            assert len(drain(consumer, 12)) == 12
        with log.consumer("g", [RESPONSES]) as consumer:
            again = drain(consumer, 20 - len(first))
            assert consumer.poll(timeout=0.1) == []
        assert set(ids(first)) | set(ids(again)) == {f"e{number}" for number in range(20)}
        assert not set(ids(first)) & set(ids(again))

    def test_commits_exactly_the_offsets_it_is_given(self, log: EventLog) -> None:
        part = append_same_key(log, 5)
        with log.consumer("g", [RESPONSES]) as consumer:
            drain(consumer, 5)
            consumer.commit({(RESPONSES, part): 2})
            assert log.committed("g", RESPONSES) == {part: 2}
        with log.consumer("g", [RESPONSES]) as consumer:
            assert ids(drain(consumer, 3)) == ["e2", "e3", "e4"]

    def test_groups_do_not_disturb_each_other(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        for group in ("one", "two"):
            with log.consumer(group, [RESPONSES]) as consumer:
                assert ids(drain(consumer, 1, commit=True)) == ["e1"]

    def test_latest_begins_behind_what_is_there(self, log: EventLog) -> None:
        log.append(RESPONSES, event(1))
        with log.consumer("g", [RESPONSES], start="latest") as consumer:
            until(lambda: consumer.poll(timeout=0.1) == [] and len(consumer.positions()) == 4)
            log.append(RESPONSES, event(2))
            assert ids(drain(consumer, 1, commit=True)) == ["e2"]

    def test_latest_gives_way_to_what_the_group_has_committed(self, log: EventLog) -> None:
        part = append_same_key(log, 3)
        with log.consumer("g", [RESPONSES]) as consumer:
            drain(consumer, 3)
            consumer.commit({(RESPONSES, part): 1})
        with log.consumer("g", [RESPONSES], start="latest") as consumer:
            assert ids(drain(consumer, 2)) == ["e1", "e2"]

    def test_seek_replays_and_skips(self, log: EventLog) -> None:
        part = append_same_key(log, 5)
        with log.consumer("g", [RESPONSES]) as consumer:
            assert len(drain(consumer, 5)) == 5
            consumer.seek(RESPONSES, part, 3)
            assert consumer.positions()[RESPONSES, part] == 3
            assert ids(drain(consumer, 2)) == ["e3", "e4"]

    def test_seek_before_the_first_poll_wins_over_the_commit(self, log: EventLog) -> None:
        part = append_same_key(log, 5)
        with log.consumer("g", [RESPONSES]) as consumer:
            drain(consumer, 5, commit=True)
        with log.consumer("g", [RESPONSES]) as consumer:
            consumer.seek(RESPONSES, part, 4)
            assert ids(drain(consumer, 1)) == ["e4"]

    def test_a_partition_begins_at_its_first_record_or_at_its_end(self, log: EventLog) -> None:
        assert log.begin_offsets(RESPONSES) == log.end_offsets(RESPONSES) == dict.fromkeys(range(4), 0)
        part = append_same_key(log, 5)
        assert log.begin_offsets(RESPONSES) == dict.fromkeys(range(4), 0)
        assert log.end_offsets(RESPONSES)[part] == 5

    def test_lag_counts_what_is_not_committed(self, log: EventLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(10)])
        log.append(FEEDBACK, event(1))
        assert log.lag("g", [RESPONSES, FEEDBACK]) == 11
        with log.consumer("g", [RESPONSES]) as consumer:
            drain(consumer, 10)
            assert log.lag("g", [RESPONSES]) == 10
            consumer.commit()
        assert log.lag("g", [RESPONSES]) == 0
        assert log.lag("g", [RESPONSES, FEEDBACK]) == 1

    def test_a_dead_letter_carries_the_event_the_reason_and_the_origin(self, log: EventLog) -> None:
        poison = Event("bad", "tests", "anyloop.v1.ResponseEvent", datetime.now(UTC), "k", b"\xff\xff")
        position = log.append(RESPONSES, poison)
        with log.consumer("g", [RESPONSES]) as consumer:
            (record,) = drain(consumer, 1)
            consumer.dead_letter(record, "not a ResponseEvent")
            consumer.commit()
        (dead,) = log.read(dlq(RESPONSES))
        assert (dead.event.id, dead.event.key, dead.event.data) == ("bad", "k", b"\xff\xff")
        assert dead.event.extensions == {
            "dlqreason": "not a ResponseEvent",
            "dlqtopic": RESPONSES,
            "dlqpartition": str(position.partition),
            "dlqoffset": str(position.offset),
            "dlqgroup": "g",
        }
        assert log.lag("g", [RESPONSES]) == 0

    def test_the_largest_event_becomes_a_dead_letter_whatever_the_length_of_the_reason(self, log: EventLog) -> None:
        log.append(RESPONSES, Event("bad", "tests", "t", datetime.now(UTC), "k", bytes(999_999)))
        with log.consumer("g", [RESPONSES]) as consumer:
            (record,) = drain(consumer, 1)
            consumer.dead_letter(record, "because " * 10_000)
        (dead,) = log.read(dlq(RESPONSES))
        assert dead.event.data == bytes(999_999)
        assert dead.event.extensions["dlqreason"] == ("because " * 10_000)[:2000]

    def test_a_closed_consumer_says_so(self, log: EventLog) -> None:
        consumer = log.consumer("g", [RESPONSES])
        consumer.close()
        consumer.close()
        with pytest.raises(LogError, match="closed"):
            consumer.poll()


class TestGroup:
    def test_two_members_share_the_partitions_and_the_records(self, log: EventLog) -> None:
        with log.consumer("g", [RESPONSES]) as one, log.consumer("g", [RESPONSES]) as two:
            settle(one, two, partitions=4)
            assert len(one.positions()) == len(two.positions()) == 2
            for number in range(80):
                log.append(RESPONSES, event(number))
            shares: dict[int, list[Record]] = {0: [], 1: []}
            deadline = time.monotonic() + 10
            while sum(map(len, shares.values())) < 80 and time.monotonic() < deadline:
                for index, member in enumerate((one, two)):
                    shares[index] += member.poll(timeout=0.05)
                    member.commit()
        assert sorted(ids(shares[0] + shares[1])) == sorted(f"e{number}" for number in range(80))
        assert all(shares.values())
        assert not {r.partition for r in shares[0]} & {r.partition for r in shares[1]}

    def test_topics_of_equal_width_are_shared_out_alike(self, log: EventLog) -> None:
        with log.consumer("g", [RESPONSES, FEEDBACK]) as one, log.consumer("g", [RESPONSES, FEEDBACK]) as two:
            settle(one, two, partitions=8)
            for member in (one, two):
                held = member.positions().keys()
                assert {p for topic, p in held if topic == RESPONSES} == {p for topic, p in held if topic == FEEDBACK}

    def test_a_newcomer_gets_no_record_that_another_member_holds_uncommitted(self, log: EventLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(40)])
        with log.consumer("g", [RESPONSES]) as one:
            held = drain(one, 40)
            with log.consumer("g", [RESPONSES]) as two:
                assert two.poll(timeout=0.5) == []
                one.commit()
                settle(one, two, partitions=4)
                log.append_many(RESPONSES, [event(number) for number in range(40, 80)])
                rest: list[Record] = []
                deadline = time.monotonic() + 10
                while len(rest) < 40 and time.monotonic() < deadline:
                    rest += one.poll(timeout=0.05) + two.poll(timeout=0.05)
        assert sorted(ids(held + rest)) == sorted(f"e{number}" for number in range(80))

    def test_a_member_that_leaves_hands_over_at_once(self, log: EventLog) -> None:
        one = log.consumer("g", [RESPONSES])
        with log.consumer("g", [RESPONSES]) as two:
            settle(one, two, partitions=4)
            one.close()
            began = time.monotonic()
            until(lambda: two.poll(timeout=0.05) == [] and len(two.positions()) == 4)
            assert time.monotonic() - began < 5.0  # the session timeout is 10

    def test_what_a_killed_member_did_not_commit_goes_to_another(self, backend: Backend) -> None:
        with backend.open(SESSION_TIMEOUT) as log:
            log.ensure_topics()
            log.append_many(RESPONSES, [event(number) for number in range(20)])
            victim = start("member.py", backend, "g", str(SESSION_TIMEOUT))
            assert victim.stdout is not None
            held = json.loads(victim.stdout.readline())
            assert sorted(held) == sorted(f"e{number}" for number in range(20))
            with log.consumer("g", [RESPONSES]) as heir:
                # The victim lives, works for longer than the session timeout, and keeps what it holds.
                end = time.monotonic() + 2 * SESSION_TIMEOUT
                while time.monotonic() < end:
                    assert heir.poll(timeout=0.2) == []
                victim.send_signal(signal.SIGKILL)
                victim.communicate(timeout=20)
                killed = time.monotonic()
                assert sorted(ids(drain(heir, 20, seconds=15))) == sorted(held)
                assert time.monotonic() - killed < 5 * SESSION_TIMEOUT

    def test_a_member_that_was_stopped_too_long_cannot_commit_over_its_heir(self, backend: Backend) -> None:
        with backend.open(SESSION_TIMEOUT) as log:
            log.ensure_topics()
            log.append_many(RESPONSES, [event(number) for number in range(20)])
            sleeper = start("member.py", backend, "g", str(SESSION_TIMEOUT), "commit")
            assert sleeper.stdout is not None
            json.loads(sleeper.stdout.readline())
            sleeper.send_signal(signal.SIGSTOP)
            with log.consumer("g", [RESPONSES]) as heir:
                assert len(drain(heir, 20, seconds=15)) == 20
                sleeper.send_signal(signal.SIGCONT)
                output, _ = sleeper.communicate("now\n", timeout=20)
                assert output.strip() == "CommitFailed"
                assert log.committed("g", RESPONSES) == {}
                heir.commit()
            assert log.lag("g", [RESPONSES]) == 0

    def test_a_partition_that_is_not_held_cannot_be_committed(self, log: EventLog) -> None:
        with log.consumer("g", [RESPONSES]) as one, log.consumer("g", [RESPONSES]) as two:
            settle(one, two, partitions=4)
            foreign = next(iter(two.positions()))
            with pytest.raises(CommitFailed):
                one.commit({foreign: 0})


def settle(*members: Consumer, partitions: int) -> None:
    """Polls (nothing is there to read) until the members hold all partitions, none of them idle."""

    def settled() -> bool:
        for member in members:
            assert member.poll(timeout=0.02) == []
        held = [set(member.positions()) for member in members]
        return all(held) and sum(map(len, held)) == len(set().union(*held)) == partitions

    until(settled)
    # A rebalance may still be under way: the same must hold a moment later.
    time.sleep(0.2)
    until(settled)


def start(script: str, backend: Backend, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / script), backend.kind, backend.address, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def finish(process: subprocess.Popen[str]) -> list[str]:
    output, _ = process.communicate(timeout=50)
    assert process.returncode == 0
    return output.split()
