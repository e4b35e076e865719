"""A log on Kafka whose broker is killed, stopped or away: nothing acknowledged is lost, nothing repeated."""

import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka.errors import MessageSizeTooLargeError
from pydantic import SecretStr

from anyloop.cli.kafka.broker import LocalBroker, free_port
from anyloop.log import RESPONSES, Consumer, Event, LogError, Position, TopicSpec, kafka_producer
from anyloop.log.kafka import KafkaLog
from anyloop.log.kafka_settings import KafkaAddress, KafkaSettings
from anyloop.log.spool import SpooledWriter
from protos.anyloop.v1 import events_pb2

_prefixes = (f"faults{number}." for number in itertools.count())


@pytest.fixture(scope="module")
def broker(new_broker: Callable[..., LocalBroker]) -> Iterator[LocalBroker]:
    victim = new_broker()
    yield victim
    victim.erase()


@pytest.fixture
def log(broker: LocalBroker) -> Iterator[KafkaLog]:
    broker.resume()
    broker.start()
    with KafkaLog(KafkaAddress((broker.address,), next(_prefixes)), KafkaSettings(timeout_s=1.0)) as opened:
        ready(opened)
        yield opened
        broker.resume()
        broker.start()


def ready(log: KafkaLog) -> None:
    deadline = time.monotonic() + 30
    while not works(lambda log: log.ensure_topics([TopicSpec(RESPONSES)]), log):
        assert time.monotonic() < deadline


def pause(broker: LocalBroker) -> None:
    broker.pause()
    time.sleep(0.2)  # until its threads have stopped


def event(name: str, key: str = "k") -> Event:
    return Event.wrap(events_pb2.ResponseEvent(response_id=name), key=key, source="tests", id=name)


def append_until_taken(log: KafkaLog, events: list[Event], seconds: float = 30.0) -> list[Position]:
    """As the outbox does: the same events again while the error is retriable."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return log.append_many(RESPONSES, events)
        except LogError as error:
            if not error.retriable or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def test_a_broker_killed_in_the_middle_of_appends_loses_and_repeats_nothing(broker: LocalBroker, log: KafkaLog) -> None:
    acknowledged: dict[str, list[Position]] = defaultdict(list)
    stop = threading.Event()

    def write(name: str) -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            batch = [event(f"{name}-{number}-{index}", name) for index in range(5)]
            acknowledged[name] += append_until_taken(log, batch)

    threads = [threading.Thread(target=write, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        time.sleep(0.5)
        broker.kill()
        time.sleep(0.3)
        broker.start()
        reached = {name: len(positions) for name, positions in acknowledged.items()}
        deadline = time.monotonic() + 20
        while any(len(acknowledged[name]) <= count for name, count in reached.items()):
            assert time.monotonic() < deadline, "appends do not go on after the restart"
            time.sleep(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    stored: dict[str, list[tuple[str, Position]]] = defaultdict(list)
    for record in log.read(RESPONSES):
        stored[record.event.key].append((record.event.id, Position(RESPONSES, record.partition, record.offset)))
    for name, positions in acknowledged.items():
        expected = [f"{name}-{index // 5}-{index % 5}" for index in range(len(positions))]
        assert stored[name] == list(zip(expected, positions, strict=True))


def test_an_append_that_ran_out_of_time_is_not_repeated_by_its_repetition(broker: LocalBroker, log: KafkaLog) -> None:
    log.append(RESPONSES, event("first"))
    pause(broker)
    batch = [event(f"e{number}") for number in range(3)]
    began = time.monotonic()
    with pytest.raises(LogError) as caught:
        log.append_many(RESPONSES, batch)
    assert caught.value.retriable
    assert 0.9 < time.monotonic() - began < 3.0
    broker.resume()
    positions = append_until_taken(log, batch)
    assert [position.offset for position in positions] == [1, 2, 3]
    assert [record.event.id for record in log.read(RESPONSES)] == ["first", "e0", "e1", "e2"]


def test_an_event_appended_twice_on_purpose_is_there_twice_after_a_failure_too(
    broker: LocalBroker, log: KafkaLog
) -> None:
    log.append(RESPONSES, event("first"))
    pause(broker)
    with pytest.raises(LogError):
        log.append(RESPONSES, event("e"))
    broker.resume()
    append_until_taken(log, [event("e")])
    log.append(RESPONSES, event("e"))
    assert Counter(record.event.id for record in log.read(RESPONSES)) == {"first": 1, "e": 2}


def test_what_is_under_way_when_the_producer_breaks_is_not_sent_again(broker: LocalBroker, log: KafkaLog) -> None:
    with KafkaLog(log._address, KafkaSettings(timeout_s=20.0)) as patient:
        patient.append(RESPONSES, event("first"))
        producer = patient._appender._producer
        assert producer is not None
        pause(broker)
        thread = threading.Thread(target=patient.append, args=(RESPONSES, event("e")))
        thread.start()
        time.sleep(0.3)
        producer._transaction_manager.transition_to_fatal_error(MessageSizeTooLargeError())  # by another's event
        producer._sender.wakeup()
        time.sleep(0.5)
        broker.resume()
        thread.join(20)
        patient.append(RESPONSES, event("last"))
    assert [record.event.id for record in log.read(RESPONSES)] == ["first", "e", "last"]


OPERATIONS: dict[str, Callable[[KafkaLog], object]] = {
    "append": lambda log: log.append(RESPONSES, event("x")),
    "end_offsets": lambda log: log.end_offsets(RESPONSES),
    "committed": lambda log: log.committed("g", RESPONSES),
    "read": lambda log: list(log.read(RESPONSES)),
    "consumer": lambda log: log.consumer("g", [RESPONSES]).close(),
    "ensure_topics": lambda log: log.ensure_topics([TopicSpec(RESPONSES)]),
}


def test_what_waits_for_the_broker_is_bounded_and_still_repeated_once(
    broker: LocalBroker, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "_MAX_UNSETTLED_BYTES", 3000)
    log.append(RESPONSES, event("first"))
    pause(broker)
    batch = [event(f"e{number}") for number in range(3)]
    with pytest.raises(LogError):
        log.append_many(RESPONSES, batch)
    with pytest.raises(LogError, match="bytes wait for the brokers already") as caught:
        log.append(RESPONSES, event("more"))
    assert caught.value.retriable
    broker.resume()
    append_until_taken(log, batch)
    append_until_taken(log, [event("more")])
    assert [record.event.id for record in log.read(RESPONSES)] == ["first", "e0", "e1", "e2", "more"]


@pytest.mark.parametrize("fault", ["away", "silent"])
def test_without_a_broker_every_operation_fails_retriable_and_in_time_and_works_again_with_it(
    broker: LocalBroker, log: KafkaLog, fault: str
) -> None:
    log.append(RESPONSES, event("x"))
    if fault == "away":
        broker.kill()
    else:
        pause(broker)
    for name, operation in [*OPERATIONS.items(), ("append again", OPERATIONS["append"])]:
        began = time.monotonic()
        with pytest.raises(LogError) as caught:
            operation(log)
        assert caught.value.retriable, name
        assert broker.address in str(caught.value)
        assert time.monotonic() - began < 3.0, name
    broker.resume()
    broker.start()
    deadline = time.monotonic() + 20
    for operation in OPERATIONS.values():
        while not works(operation, log):
            assert time.monotonic() < deadline


def works(operation: Callable[[KafkaLog], object], log: KafkaLog) -> bool:
    try:
        operation(log)
    except LogError as error:
        if not error.retriable:
            raise
        return False
    return True


def test_opening_connects_to_nothing_and_closing_what_never_connected_is_quick() -> None:
    began = time.monotonic()
    log = KafkaLog(KafkaAddress((f"127.0.0.1:{free_port()}",)), KafkaSettings())
    log.close()
    assert time.monotonic() - began < 0.5


def test_closing_with_events_in_doubt_is_quick_and_leaves_no_thread(broker: LocalBroker, log: KafkaLog) -> None:
    log.append(RESPONSES, event("first"))
    pause(broker)
    with pytest.raises(LogError):
        log.append(RESPONSES, event("e"))
    before = time.monotonic()
    log.close()
    assert time.monotonic() - before < 5.0
    assert not [thread for thread in threading.enumerate() if "network-thread" in thread.name]


@pytest.mark.parametrize("operation", ["end_offsets", "append"])
def test_closing_while_a_connection_is_made_is_quick_and_leaves_no_connection(
    broker: LocalBroker, log: KafkaLog, operation: str
) -> None:
    slow = KafkaLog(log._address, KafkaSettings(timeout_s=20.0))
    if operation == "append":
        slow.end_offsets(RESPONSES)  # connected, but for the producer
    errors: list[BaseException] = []

    def operate() -> None:
        try:
            OPERATIONS[operation](slow)
        except LogError as error:
            errors.append(error)

    pause(broker)
    before = set(threading.enumerate())
    thread = threading.Thread(target=operate)
    thread.start()
    time.sleep(0.5)
    assert thread.is_alive()
    began = time.monotonic()
    slow.close()
    assert time.monotonic() - began < 3.0
    broker.resume()
    thread.join(20)
    assert [str(error) for error in errors] == [f"kafka {broker.address}: this log is closed"]
    assert not [one.name for one in set(threading.enumerate()) - before if one.is_alive()]
    assert slow._cluster._client is None
    assert slow._appender._producer is None


def test_an_outbox_before_a_mute_broker_closes_in_time(broker: LocalBroker, log: KafkaLog, tmp_path: Path) -> None:
    def slow() -> KafkaLog:
        return KafkaLog(log._address, KafkaSettings(timeout_s=20.0))

    pause(broker)
    spool = SpooledWriter(slow, tmp_path / "spool").start()
    spool.put(RESPONSES, event("e"))
    time.sleep(0.5)
    began = time.monotonic()
    spool.close()
    assert time.monotonic() - began < 6.0
    broker.resume()
    spool._drainer.join(20)
    assert not spool._drainer.is_alive()
    with SpooledWriter(slow, tmp_path / "spool") as spool:
        assert spool.flush(20)
    assert [record.event.id for record in log.read(RESPONSES)] == ["e"]


def test_a_consumer_goes_on_after_the_broker_was_killed(broker: LocalBroker, log: KafkaLog) -> None:
    log.append_many(RESPONSES, [event(f"e{number}") for number in range(10)])
    with log.consumer("g", [RESPONSES]) as consumer:
        seen = read_ids(consumer, 10)
        consumer.commit()
        broker.kill()
        began = time.monotonic()
        assert consumer.poll(timeout=0.5) == []
        with pytest.raises(LogError) as caught:
            consumer.poll(timeout=10.0)
        assert caught.value.retriable
        assert time.monotonic() - began < 5.0
        with pytest.raises(LogError) as caught:
            consumer.commit({(RESPONSES, part): 0 for _, part in consumer.positions()})
        assert caught.value.retriable
        broker.start()
        append_until_taken(log, [event("after")])
        seen += read_ids(consumer, 1)
        consumer.commit()
    assert seen == [f"e{number}" for number in range(10)] + ["after"]
    assert log.lag("g", [RESPONSES]) == 0


def read_ids(consumer: Consumer, count: int) -> list[str]:
    """Polls through a broker's absence until so many have come."""
    found: list[str] = []
    deadline = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < deadline, found
        try:
            found += [record.event.id for record in consumer.poll(timeout=0.2)]
        except LogError as error:
            if not error.retriable:
                raise
    return found


def test_no_thread_of_a_failed_connection_stays() -> None:
    before = threading.active_count()
    with KafkaLog(KafkaAddress((f"127.0.0.1:{free_port()}",)), KafkaSettings(timeout_s=0.6)) as log:
        for _ in range(3):
            with pytest.raises(LogError):
                log.end_offsets(RESPONSES)
    assert threading.active_count() == before


def test_credentials_that_are_refused_after_a_restart_fail_for_good_and_work_again_when_they_are_right(
    new_broker: Callable[..., LocalBroker],
) -> None:
    settings = {"sasl.enabled.mechanisms": "PLAIN", **password("sesame")}
    port = free_port()
    broker = new_broker(settings=settings, extra_listeners={"GUARDED": ("SASL_PLAINTEXT", port)})
    client = KafkaSettings(
        timeout_s=2.0,
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        sasl_username="ann",
        sasl_password=SecretStr("sesame"),
    )
    with KafkaLog(KafkaAddress((f"127.0.0.1:{port}",)), client) as log:
        ready(log)
        log.append(RESPONSES, event("before"))
        restart(broker, password("changed"))
        with pytest.raises(LogError, match="check ANYLOOP_KAFKA_SASL_USERNAME") as caught:
            append_until_taken(log, [event("again")])
        assert not caught.value.retriable
        restart(broker, password("sesame"))
        append_until_taken(log, [event("again")])
        assert [record.event.id for record in log.read(RESPONSES)] == ["before", "again"]
    broker.erase()


def password(word: str) -> dict[str, str]:
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    return {"listener.name.guarded.plain.sasl.jaas.config": f'{module} required user_ann="{word}";'}


def restart(broker: LocalBroker, settings: dict[str, str]) -> None:
    broker.kill()
    broker._settings |= settings
    broker.start()
