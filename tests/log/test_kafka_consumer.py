"""Members of a consumer group on Kafka: who has which partitions while they poll, work, or are gone for long."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.admin import MemberToRemove

from anyloop.log import FEEDBACK, RESPONSES, CommitFailed, Consumer, Event, LogError, Record, TopicSpec
from anyloop.log.kafka import KafkaLog
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from protos.anyloop.v1 import events_pb2

SESSION = 2.0


@pytest.fixture
def log(kafka_url: str) -> Iterator[KafkaLog]:
    with KafkaLog(KafkaAddress.from_url(kafka_url), KafkaSettings(session_timeout_s=SESSION)) as opened:
        opened.ensure_topics([TopicSpec(RESPONSES), TopicSpec(FEEDBACK)])
        yield opened


def event(number: int) -> Event:
    return Event.wrap(
        events_pb2.ResponseEvent(response_id=f"r{number}"), key=f"k{number}", source="tests", id=f"e{number}"
    )


def append(log: KafkaLog, *numbers: int) -> None:
    log.append_many(RESPONSES, [event(number) for number in numbers])


def drain(consumer: Consumer, count: int, seconds: float = 15.0) -> list[Record]:
    records: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(records) < count:
        assert time.monotonic() < deadline, [record.event.id for record in records]
        records += consumer.poll(timeout=0.2)
    return records


def ids(records: list[Record]) -> list[str]:
    return sorted(record.event.id for record in records)


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


def holds(consumer: Consumer) -> set[int]:
    return {part for _, part in consumer.positions()}


class TestWhileItsUserWorks:
    def test_a_member_with_nothing_uncommitted_shares_with_a_newcomer_without_being_polled(self, log: KafkaLog) -> None:
        append(log, *range(20))
        with log.consumer("g", [RESPONSES]) as busy:
            drain(busy, 20)
            busy.commit()
            with log.consumer("g", [RESPONSES]) as newcomer:
                until(lambda: newcomer.poll(timeout=0.05) == [] and len(holds(newcomer)) == 2)
                assert len(holds(busy)) == 2
                assert not holds(busy) & holds(newcomer)

    def test_a_member_that_works_for_long_on_uncommitted_records_keeps_all_and_can_commit(self, log: KafkaLog) -> None:
        append(log, *range(20))
        with log.consumer("g", [RESPONSES]) as busy, log.consumer("other", [RESPONSES]):
            drain(busy, 20)
            with log.consumer("g", [RESPONSES]) as newcomer:
                end = time.monotonic() + 2 * SESSION
                while time.monotonic() < end:
                    assert newcomer.poll(timeout=0.1) == []
                assert len(holds(busy)) == 4
                busy.commit()
                until(lambda: newcomer.poll(timeout=0.05) == [] and len(holds(newcomer)) == 2)
            assert log.lag("g", [RESPONSES]) == 0

    def test_a_member_that_polls_on_without_committing_keeps_its_partitions_for_a_while_and_then_gives_them_up(
        self, log: KafkaLog
    ) -> None:
        append(log, *range(40))
        with log.consumer("g", [RESPONSES]) as greedy:
            drain(greedy, 40)
            with log.consumer("g", [RESPONSES]) as newcomer:
                began = time.monotonic()
                got: list[Record] = []
                while not got:
                    assert time.monotonic() - began < 15
                    greedy.poll(timeout=0.05)
                    got += newcomer.poll(timeout=0.05)
                assert time.monotonic() - began > SESSION * 0.8
                # What is elsewhere now cannot be committed here any more.
                lost = next((record.topic, record.partition) for record in got)
                with pytest.raises(CommitFailed):
                    greedy.commit({lost: 40})
                until(lambda: not newcomer.poll(timeout=0.05) and len(holds(newcomer)) == 2)
                newcomer.commit()

    def test_members_that_come_and_go_at_once_settle_and_every_record_is_handed_out(self, log: KafkaLog) -> None:
        stop = threading.Event()
        seen: list[str] = []
        lock = threading.Lock()

        def work() -> None:
            with log.consumer("g", [RESPONSES, FEEDBACK]) as consumer:
                while not stop.is_set():
                    records = consumer.poll(timeout=0.1)
                    try:
                        consumer.commit()
                    except CommitFailed:
                        continue
                    with lock:
                        seen.extend(record.event.id for record in records)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for number, thread in enumerate(threads):
            thread.start()
            append(log, *range(number * 100, number * 100 + 50))
            time.sleep(0.4)  # some joins meet a rebalance, some a settled group
            append(log, *range(number * 100 + 50, number * 100 + 100))
        until(lambda: set(seen) >= {f"e{number}" for number in range(400)}, 30)
        until(lambda: log.lag("g", [RESPONSES]) == 0)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert sorted(seen) == sorted(f"e{number}" for number in range(400))


class TestHung:
    """A user that neither polls nor commits, in a process whose heart beats."""

    @pytest.fixture
    def impatient(self, kafka_url: str) -> Iterator[KafkaLog]:
        settings = KafkaSettings(session_timeout_s=SESSION, max_poll_interval_s=2 * SESSION)
        with KafkaLog(KafkaAddress.from_url(kafka_url), settings) as opened:
            opened.ensure_topics([TopicSpec(RESPONSES)])
            yield opened

    def test_its_partitions_go_to_others_after_the_interval_and_come_back(
        self, impatient: KafkaLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        append(impatient, *range(20))
        with impatient.consumer("g", [RESPONSES]) as hung, impatient.consumer("g", [RESPONSES]) as other:
            records: list[Record] = []
            while len(records) < 20 or len(holds(hung)) != 2:
                records += hung.poll(timeout=0.05)
                hung.commit()
                records += other.poll(timeout=0.05)
                other.commit()
            append(impatient, *range(20, 40))
            uncommitted = drain(hung, 1)
            began = time.monotonic()
            got = drain(other, 20)
            assert time.monotonic() - began > 2 * SESSION * 0.7
            assert ids(uncommitted)[0] in ids(got)
            with pytest.raises(CommitFailed):
                hung.commit()
            other.commit()
            until(lambda: hung.poll(timeout=0.05) == other.poll(timeout=0.05) == [] and len(holds(hung)) == 2)
            assert impatient.lag("g", [RESPONSES]) == 0
        assert caplog.text.count("ANYLOOP_KAFKA_MAX_POLL_INTERVAL_S") == 1

    def test_commits_between_polls_are_signs_of_life(self, impatient: KafkaLog) -> None:
        append(impatient, *range(20))
        with impatient.consumer("g", [RESPONSES]) as busy:
            records = drain(busy, 20)
            for record in records[:7]:
                time.sleep(SESSION / 2)
                busy.commit({(record.topic, record.partition): record.offset + 1})
            busy.commit()
        assert impatient.lag("g", [RESPONSES]) == 0


class TestExpelled:
    """By the brokers: its heartbeats did not come through for the session timeout."""

    @pytest.mark.parametrize("noticed", [False, True], ids=["at the commit", "before the commit"])
    def test_a_member_cannot_commit_what_it_held_and_gets_it_again_when_it_is_back(
        self, log: KafkaLog, kafka_url: str, admin: KafkaAdminClient, noticed: bool
    ) -> None:
        append(log, *range(20))
        with log.consumer("g", [RESPONSES]) as consumer:
            drain(consumer, 20)
            group = kafka_url.rsplit("/", 1)[1] + "g"
            expelled = members(admin, group)
            admin.remove_group_members(group, [MemberToRemove(member_id=member) for member in expelled])
            if noticed:  # by a heartbeat; it joins again by itself
                until(lambda: bool(members(admin, group)) and members(admin, group) != expelled)
                time.sleep(0.5)
            with pytest.raises(CommitFailed):
                consumer.commit()
            assert log.committed("g", RESPONSES) == {}
            assert ids(drain(consumer, 20)) == ids(list(log.read(RESPONSES)))
            consumer.commit()
        assert log.lag("g", [RESPONSES]) == 0


@pytest.fixture
def admin(kafka_servers: str) -> Iterator[KafkaAdminClient]:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=kafka_servers)) as client:
        yield client


def members(admin: KafkaAdminClient, group: str) -> set[str]:
    return {member["member_id"] for member in admin.describe_groups([group])[group]["members"]}


class TestOffsets:
    def test_a_seek_waits_for_its_partition_and_wins_over_the_commit(self, log: KafkaLog) -> None:
        append(log, *range(20))
        with log.consumer("g", [RESPONSES]) as first:
            records = drain(first, 20)
            first.commit()
            with log.consumer("g", [RESPONSES]) as second:
                for part in range(4):
                    second.seek(RESPONSES, part, 0)
                again = drain(second, 1)
                until(lambda: bool(again.extend(second.poll(timeout=0.05))) or len(holds(second)) == 2)
                again += second.poll(timeout=0.5)
                mine = holds(second)
            assert ids(again) == ids([record for record in records if record.partition in mine])

    def test_latest_counts_from_the_creation_of_the_consumer(self, log: KafkaLog) -> None:
        append(log, 0)
        with log.consumer("g", [RESPONSES], start="latest") as consumer:
            append(log, 1)
            assert ids(drain(consumer, 1)) == ["e1"]

    def test_an_offset_behind_the_end_begins_again_at_the_beginning_and_says_so(
        self, log: KafkaLog, caplog: pytest.LogCaptureFixture
    ) -> None:
        append(log, 1)
        (record,) = log.read(RESPONSES)
        with log.consumer("g", [RESPONSES]) as consumer, caplog.at_level(logging.WARNING):
            drain(consumer, 1)
            consumer.seek(RESPONSES, record.partition, 1000)
            assert ids(drain(consumer, 1)) == ["e1"]
        assert f"{RESPONSES}/{record.partition} has no offset 1000" in caplog.text

    def test_what_is_no_partition_of_the_subscription_is_refused(self, log: KafkaLog) -> None:
        with log.consumer("g", [RESPONSES]) as consumer:
            for topic, part, offset in ((FEEDBACK, 0, 0), (RESPONSES, 4, 0), (RESPONSES, -1, 0), (RESPONSES, 0, -1)):
                with pytest.raises(ValueError, match="no partition"):
                    consumer.seek(topic, part, offset)
            with pytest.raises(CommitFailed):
                consumer.commit({(FEEDBACK, 0): 1})
            with pytest.raises(ValueError, match="0 or more"):
                consumer.commit({(RESPONSES, 0): -1})


def test_closing_the_log_closes_its_consumers_and_leaves_no_thread(log: KafkaLog) -> None:
    before = set(threading.enumerate())
    consumer = log.consumer("g", [RESPONSES])
    consumer.poll(timeout=0.5)
    log.append(RESPONSES, event(1))
    list(log.read(RESPONSES))
    log.close()
    with pytest.raises(LogError, match="closed"):
        consumer.poll()
    assert not [thread.name for thread in set(threading.enumerate()) - before if thread.is_alive()]


def test_a_session_timeout_that_the_brokers_refuse_says_which_setting(kafka_url: str) -> None:
    settings = KafkaSettings(session_timeout_s=100_000, max_poll_interval_s=200_000)
    with KafkaLog(KafkaAddress.from_url(kafka_url), settings) as log:
        log.ensure_topics([TopicSpec(RESPONSES)])
        with log.consumer("g", [RESPONSES]) as consumer, pytest.raises(LogError, match="SESSION_TIMEOUT_S") as caught:
            consumer.poll(timeout=10.0)
        assert not caught.value.retriable
