"""What only a log on Kafka meets: gaps in the offsets, retention, records of other programs, prefixes, headers."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from anyloop.cli.kafka.broker import LocalBroker
from anyloop.log import (
    CHECKPOINTS,
    RESPONSES,
    Event,
    EventTooLarge,
    LogError,
    PoisonEvent,
    TopicSpec,
    UnknownTopic,
    dlq,
    open_log,
)
from anyloop.log.kafka import KafkaLog
from anyloop.log.kafka_producer import KafkaAppender
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from anyloop.log.partition import partition_of
from anyloop.telemetry import metrics
from protos.anyloop.v1 import events_pb2


@pytest.fixture
def log(kafka_url: str) -> Iterator[KafkaLog]:
    with KafkaLog(KafkaAddress.from_url(kafka_url), KafkaSettings()) as opened:
        opened.ensure_topics([TopicSpec(RESPONSES, 2), TopicSpec(dlq(RESPONSES), 2)])
        yield opened


@pytest.fixture
def prefix(kafka_url: str) -> str:
    return kafka_url.rsplit("/", 1)[1]


@pytest.fixture
def admin(kafka_servers: str) -> Iterator[KafkaAdminClient]:
    with contextlib.closing(KafkaAdminClient(bootstrap_servers=kafka_servers)) as client:
        yield client


@pytest.fixture
def foreign(kafka_servers: str) -> Iterator[Callable[..., KafkaProducer]]:
    """Makes producers of another program."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(
            contextlib.closing(KafkaProducer(bootstrap_servers=kafka_servers, **options))
        )


def event(number: int, key: str = "k") -> Event:
    return Event.wrap(events_pb2.ResponseEvent(response_id=f"r{number}"), key=key, source="tests", id=f"e{number}")


def ids(records: Any) -> list[str]:
    return [record.event.id for record in records]


def drain(log: KafkaLog, count: int, group: str = "g") -> list[Any]:
    records: list[Any] = []
    deadline = time.monotonic() + 20
    with log.consumer(group, [RESPONSES]) as consumer:
        while len(records) < count and time.monotonic() < deadline:
            records += consumer.poll(timeout=0.2)
        consumer.commit()
    return records


class TestOnTheWire:
    def test_an_event_is_a_cloud_event_in_binary_mode(self, log: KafkaLog, kafka_servers: str, prefix: str) -> None:
        sent = Event(
            "e-1",
            "services/policy",
            "anyloop.v1.ResponseEvent",
            datetime(2025, 3, 4, 5, 6, 7, 890123, tzinfo=UTC),
            "conversation ü",
            b"\x0a\x02r1",
            {"traceparent": "00-1-2-01"},
        )
        position = log.append(RESPONSES, sent)
        tp = TopicPartition(prefix + RESPONSES, position.partition)
        with contextlib.closing(KafkaConsumer(bootstrap_servers=kafka_servers, auto_offset_reset="earliest")) as reader:
            reader.assign([tp])
            (message,) = reader.poll(timeout_ms=10_000)[tp]
        assert dict(message.headers) == {
            "content-type": b"application/protobuf",
            "ce_specversion": b"1.0",
            "ce_id": b"e-1",
            "ce_source": b"services/policy",
            "ce_type": b"anyloop.v1.ResponseEvent",
            "ce_time": b"2025-03-04T05:06:07.890123+00:00",
            "ce_traceparent": b"00-1-2-01",
        }
        assert message.key == "conversation ü".encode()
        assert message.value == b"\x0a\x02r1"
        assert message.timestamp_type == 1  # LogAppendTime: the brokers' clock

    def test_the_prefix_stands_on_the_cluster_and_nowhere_else(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str
    ) -> None:
        position = log.append(RESPONSES, event(1))
        assert position.topic == RESPONSES
        assert {record.topic for record in log.read(RESPONSES)} == {RESPONSES}
        assert {record.topic for record in drain(log, 1)} == {RESPONSES}
        assert prefix + RESPONSES in admin.list_topics()
        assert prefix + "g" in {group["group_id"] for group in admin.list_groups()}
        with pytest.raises(LogError, match=f"topic '{CHECKPOINTS}' does not exist"):
            log.end_offsets(CHECKPOINTS)

    def test_two_prefixes_are_two_logs(self, log: KafkaLog, kafka_url: str) -> None:
        log.append(RESPONSES, event(1))
        drain(log, 1)
        with open_log(kafka_url + "b.") as other:
            other.ensure_topics([TopicSpec(RESPONSES, 2)])
            assert list(other.read(RESPONSES)) == []
            assert other.committed("g", RESPONSES) == {}

    def test_an_event_that_the_topic_does_not_take_is_too_large_and_takes_no_other_with_it(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str
    ) -> None:
        configs = {"max.message.bytes": "2000"}
        admin.create_topics({prefix + "small": {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
        large = Event("large", "tests", "anyloop.v1.ResponseEvent", datetime.now(UTC), "k", bytes(5000))
        with pytest.raises(EventTooLarge, match=r"event large.*max\.message\.bytes"):
            log.append("small", large)
        assert log.append("small", event(1)).offset == 0
        with pytest.raises(EventTooLarge, match="event large"):
            log.append_many("small", [event(2), large, event(3)])
        # What went before is there, and is not repeated with the rest.
        assert [position.offset for position in log.append_many("small", [event(2), event(3)])] == [1, 2]
        assert ids(log.read("small")) == ["e1", "e2", "e3"]

    def test_one_that_is_too_large_among_many_is_found_by_halving(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        configs = {"max.message.bytes": "100000"}
        admin.create_topics({prefix + "small": {"num_partitions": 2, "configs": configs}}, wait_for_metadata=True)
        made: list[float] = []
        make = KafkaAppender._new_producer

        def counted(appender: KafkaAppender, deadline: float) -> KafkaProducer:
            made.append(deadline)
            return make(appender, deadline)

        monkeypatch.setattr(KafkaAppender, "_new_producer", counted)
        one, other = "k0", "k3"
        assert partition_of(one, 2) != partition_of(other, 2)
        events = [event(number, one) for number in range(300)]  # most of which wait when the producer breaks
        large = Event("large", "tests", "anyloop.v1.ResponseEvent", datetime.now(UTC), other, bytes(150_000))
        with (
            KafkaLog(log._address, KafkaSettings(linger_ms=200, batch_bytes=1024)) as small_batches,
            pytest.raises(EventTooLarge, match="event large"),
        ):
            small_batches.append_many("small", [*events, large])
        assert len(made) < 25
        found = ids(log.read("small"))
        assert found == [f"e{number}" for number in range(len(found))]

    def test_many_events_larger_together_than_the_topic_takes_are_appended_in_order(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str
    ) -> None:
        configs = {"max.message.bytes": "2000"}
        admin.create_topics({prefix + "small": {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
        positions = log.append_many("small", [event(number) for number in range(50)])
        assert [position.offset for position in positions] == list(range(50))
        assert ids(log.read("small")) == [f"e{number}" for number in range(50)]


def marked(log: KafkaLog, partition: int, end: int) -> None:
    """Waits for a transaction's marker: the broker writes it after it has acknowledged the transaction's end."""
    deadline = time.monotonic() + 10
    while log.end_offsets(RESPONSES)[partition] < end:
        assert time.monotonic() < deadline, "the transaction's marker does not come"
        time.sleep(0.01)


class TestGaps:
    def test_a_replay_and_a_consumer_pass_over_the_markers_and_the_records_of_transactions(
        self, log: KafkaLog, prefix: str, foreign: Callable[..., KafkaProducer]
    ) -> None:
        producer = foreign(transactional_id=prefix + "t")
        producer.init_transactions()
        part = log.append(RESPONSES, event(0)).partition
        for number, end in ((1, producer.commit_transaction), (2, producer.abort_transaction)):
            producer.begin_transaction()
            headers = [
                ("ce_id", b"e%d" % number),
                ("ce_type", b"t"),
                ("ce_source", b"s"),
                ("ce_time", b"2025-01-01T00:00:00Z"),
            ]
            producer.send(prefix + RESPONSES, value=b"", key=b"k", headers=headers, partition=part).get(10)
            end()
            marked(log, part, 1 + 2 * number)
        # e0 0, e1 1, commit 2, aborted 3, abort 4
        assert log.append(RESPONSES, event(5)).offset == 5
        assert [(r.event.id, r.offset) for r in log.read(RESPONSES)] == [("e0", 0), ("e1", 1), ("e5", 5)]
        assert ids(log.read(RESPONSES, partition=part, offset=2)) == ["e5"]
        assert ids(drain(log, 3)) == ["e0", "e1", "e5"]
        assert log.lag("g", [RESPONSES]) == 0

    def test_a_replay_ends_where_the_log_ends_in_a_marker(
        self, log: KafkaLog, prefix: str, foreign: Callable[..., KafkaProducer]
    ) -> None:
        part = log.append(RESPONSES, event(0)).partition
        producer = foreign(transactional_id=prefix + "t")
        producer.init_transactions()
        producer.begin_transaction()
        producer.send(prefix + RESPONSES, value=b"", key=b"k", partition=part).get(10)
        producer.abort_transaction()
        marked(log, part, 3)
        began = time.monotonic()
        assert ids(log.read(RESPONSES)) == ["e0"]
        assert list(log.read(RESPONSES, partition=part, offset=2)) == []
        assert time.monotonic() - began < 3.0

    def test_what_retention_has_removed_is_passed_over(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str
    ) -> None:
        positions = log.append_many(RESPONSES, [event(number) for number in range(5)])
        part = positions[0].partition
        with log.consumer("behind", [RESPONSES]) as consumer:
            while not consumer.poll(timeout=0.2):
                pass
            consumer.commit({(RESPONSES, part): 1})
        admin.delete_records({TopicPartition(prefix + RESPONSES, part): 3})
        assert log.begin_offsets(RESPONSES)[part] == 3
        assert log.lag("behind", [RESPONSES]) == log.lag("new", [RESPONSES]) == 2
        assert ids(log.read(RESPONSES)) == ["e3", "e4"]
        assert ids(log.read(RESPONSES, partition=part, offset=0)) == ["e3", "e4"]
        assert ids(drain(log, 2)) == ["e3", "e4"]
        assert ids(drain(log, 2, "behind")) == ["e3", "e4"]

    def test_a_partition_that_retention_has_emptied_has_nothing_to_read_and_goes_on(
        self, log: KafkaLog, admin: KafkaAdminClient, prefix: str
    ) -> None:
        part = log.append_many(RESPONSES, [event(number) for number in range(3)])[0].partition
        admin.delete_records({TopicPartition(prefix + RESPONSES, part): 3})
        assert list(log.read(RESPONSES)) == []
        assert log.append(RESPONSES, event(3)).offset == 3
        assert ids(log.read(RESPONSES, partition=part, offset=0)) == ["e3"]

    def test_a_compacted_topic_replays_what_compaction_has_left(self, new_broker: Callable[..., LocalBroker]) -> None:
        broker = new_broker(settings={"log.cleaner.backoff.ms": "100", "log.initial.task.delay.ms": "100"})
        with (
            KafkaLog(KafkaAddress((broker.address,))) as log,
            contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.address)) as admin,
        ):
            configs = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0.01"}
            admin.create_topics({"compacted": {"num_partitions": 1, "configs": configs}}, wait_for_metadata=True)
            log.append_many("compacted", [event(number, f"k{number % 2}") for number in range(10)])
            deadline = time.monotonic() + 30
            while (left := ids(log.read("compacted")))[:2] != ["e8", "e9"]:
                assert time.monotonic() < deadline, left
                time.sleep(0.2)
                log.append("compacted", event(99, "roll"))  # only closed segments are cleaned
            assert log.end_offsets("compacted")[0] > 10
            assert ids(log.read("compacted", partition=0, offset=3))[:2] == ["e8", "e9"]
        broker.erase()


class TestForeignRecords:
    def test_a_record_that_is_no_cloud_event_is_poison_and_goes_to_the_dead_letters(
        self, log: KafkaLog, prefix: str, foreign: Callable[..., KafkaProducer]
    ) -> None:
        producer = foreign()
        producer.send(prefix + RESPONSES, value=b"{}", partition=0).get(10)
        producer.send(prefix + RESPONSES, value=None, key=b"tombstone", partition=0).get(10)
        producer.send(prefix + RESPONSES, value=b"x", headers=[("ce_id", b"\xff")], partition=0).get(10)
        with log.consumer("g", [RESPONSES]) as consumer:
            records: list[Any] = []
            while len(records) < 3:
                records += consumer.poll(timeout=0.2)
            for record in records:
                with pytest.raises(PoisonEvent):
                    record.event.unwrap()
                consumer.dead_letter(record, "not of ours")
            consumer.commit()
        assert ids(records) == [f"{RESPONSES}-0-{offset}" for offset in range(3)]
        dead = {record.event.id: record.event for record in log.read(dlq(RESPONSES))}
        assert dead[f"{RESPONSES}-0-0"].data == b"{}"
        assert dead[f"{RESPONSES}-0-0"].extensions["dlqreason"] == "not of ours"
        assert "id" in dead[f"{RESPONSES}-0-0"].extensions["malformed"]
        assert dead[f"{RESPONSES}-0-1"].key == "tombstone"


class TestReplay:
    def test_goes_by_the_brokers_clock_across_partitions(self, log: KafkaLog) -> None:
        expected = []
        for number in range(12):
            log.append(RESPONSES, event(number, f"k{number}"))
            expected.append(f"e{number}")
            time.sleep(0.005)
        assert len({record.partition for record in log.read(RESPONSES)}) == 2
        assert ids(log.read(RESPONSES)) == expected

    def test_one_that_is_left_half_way_leaves_its_connection_for_the_next(self, log: KafkaLog) -> None:
        log.append_many(RESPONSES, [event(number) for number in range(1500)])
        for _ in range(12):
            assert ids(log.read(RESPONSES, limit=2)) == ["e0", "e1"]
        halves = [log.read(RESPONSES) for _ in range(3)]
        assert [next(half).event.id for half in halves] == ["e0"] * 3
        assert len(list(halves[0])) == 1499

    def test_since_is_exact_to_the_millisecond(self, log: KafkaLog) -> None:
        for number in range(3):
            log.append(RESPONSES, event(number))
            time.sleep(0.003)
        _, second, _ = log.read(RESPONSES)
        assert ids(log.read(RESPONSES, since=second.time)) == ["e1", "e2"]
        assert ids(log.read(RESPONSES, since=second.time + timedelta(microseconds=1))) == ["e2"]
        assert ids(log.read(RESPONSES, since=datetime(1960, 1, 1, tzinfo=UTC))) == ["e0", "e1", "e2"]


def test_appends_and_their_failures_are_counted(log: KafkaLog) -> None:
    def appended() -> float:
        return float(metrics.LOG_APPENDED_EVENTS.labels(RESPONSES)._value.get())

    before = appended()
    log.append_many(RESPONSES, [event(1), event(2)])
    assert appended() - before == 2
    failed = metrics.LOG_APPEND_ERRORS.labels("nowhere", "UnknownTopic")
    before = failed._value.get()
    with pytest.raises(LogError):
        log.append("nowhere", event(1))
    assert failed._value.get() - before == 1


def test_a_topic_that_is_deleted_is_unknown_again_and_one_made_anew_takes_events(
    kafka_url: str, admin: KafkaAdminClient, prefix: str
) -> None:
    with KafkaLog(KafkaAddress.from_url(kafka_url), KafkaSettings(timeout_s=1.0)) as log:
        log.ensure_topics([TopicSpec(RESPONSES, 2)])
        log.append(RESPONSES, event(1))
        admin.delete_topics([prefix + RESPONSES])
        until_unknown(lambda: log.append(RESPONSES, event(2)))
        until_unknown(lambda: log.end_offsets(RESPONSES))
        with pytest.raises(UnknownTopic):
            log.consumer("g", [RESPONSES])
        log.ensure_topics([TopicSpec(RESPONSES, 2)])
        log.append(RESPONSES, event(3))
        assert ids(log.read(RESPONSES))[-1] == "e3"


def until_unknown(attempt: Callable[[], object]) -> None:
    """The brokers forget a deleted topic a moment later."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            attempt()
        except UnknownTopic as error:
            if error.retriable:
                return
            raise
        except LogError as error:
            if not error.retriable:
                raise
    raise AssertionError("the topic is still known")


def test_the_largest_event_is_taken(log: KafkaLog) -> None:
    largest = Event("large", "tests", "anyloop.v1.ResponseEvent", datetime.now(UTC), "k", bytes(999_999))
    log.append(RESPONSES, largest)
    log.append(RESPONSES, event(1))
    assert next(record.event for record in log.read(RESPONSES)) == largest
    assert ids(drain(log, 2)) == ["large", "e1"]
