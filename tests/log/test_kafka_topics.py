import threading
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType

from anyloop.log import CHECKPOINTS, FEEDBACK, TOPICS, Event, EventLog, LogError, TopicSpec, open_log
from anyloop.log.kafka_settings import KafkaAddress
from anyloop.log.kafka_topics import topic_settings
from protos.anyloop.v1 import events_pb2

_HOURS = 3_600_000


@pytest.fixture
def admin(kafka_servers: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka_servers)
    yield client
    client.close()


def _on_the_cluster(admin: KafkaAdminClient, url: str, topic: str) -> dict[str, str]:
    """The settings that are set on the topic itself."""
    name = KafkaAddress.from_url(url).prefix + topic
    found = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])["topic"][name]
    return {key: entry["value"] for key, entry in found.items()}


def test_settings_of_a_topic_follow_from_its_spec() -> None:
    assert topic_settings(TopicSpec("t", retention_hours=1.5, min_insync=2)) == {
        "cleanup.policy": "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": str(90 * 60_000),
        "min.insync.replicas": "2",
    }
    assert topic_settings(TopicSpec("t", compacted=True)) == {
        "cleanup.policy": "compact",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "-1",
    }


def test_topics_are_created_as_planned_and_a_second_time_nothing_is(kafka_url: str, admin: KafkaAdminClient) -> None:
    with open_log(kafka_url) as log:
        plan = log.plan_topics()
        assert [(change.topic, change.action) for change in plan] == [(spec.name, "create") for spec in TOPICS]
        assert log.apply_topics() == plan
        assert log.apply_topics() == []
    assert _on_the_cluster(admin, kafka_url, CHECKPOINTS)["cleanup.policy"] == "compact"
    assert _on_the_cluster(admin, kafka_url, FEEDBACK)["retention.ms"] == "-1", "feedback is kept until told otherwise"


def test_retention_of_an_existing_topic_is_changed_and_other_settings_are_left_alone(
    kafka_url: str, admin: KafkaAdminClient
) -> None:
    with open_log(kafka_url) as log:
        log.ensure_topics([TopicSpec(FEEDBACK)])
        name = KafkaAddress.from_url(kafka_url).prefix + FEEDBACK
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, {"segment.bytes": "5242880"})])
        wanted = TopicSpec(FEEDBACK, retention_hours=24)
        (planned,) = log.plan_topics([wanted])
        assert (planned.action, planned.detail) == ("configure", f"retention.ms={24 * _HOURS} (was -1)")
        log.apply_topics([wanted])
        assert log.plan_topics([wanted]) == []
    found = _on_the_cluster(admin, kafka_url, FEEDBACK)
    assert (found["retention.ms"], found["segment.bytes"]) == (str(24 * _HOURS), "5242880")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"partitions": 5}, "4 partitions, not 5; another number would move keys: keep ANYLOOP_LOG_PARTITIONS=4"),
        ({"partitions": 3}, "4 partitions, not 3; another number would move keys"),
        ({"replication": 3}, "1 copies, not 3; add replicas with kafka-reassign-partitions.sh"),
    ],
)
def test_what_cannot_be_changed_in_place_is_refused_before_anything_is(
    change: dict[str, int], complaint: str, kafka_url: str
) -> None:
    with open_log(kafka_url) as log:
        log.ensure_topics([TopicSpec(FEEDBACK)])
        wanted = [TopicSpec("new"), TopicSpec(FEEDBACK, **change)]  # type: ignore[arg-type]
        with pytest.raises(LogError, match=complaint) as caught:
            log.apply_topics(wanted)
        assert not caught.value.retriable
        assert KafkaAddress.from_url(kafka_url).prefix not in str(caught.value)
        assert log.plan_topics([TopicSpec("new")])[0].action == "create"


def test_more_copies_than_brokers_are_refused_with_the_setting_to_change(kafka_url: str) -> None:
    with open_log(kafka_url) as log, pytest.raises(LogError, match="set ANYLOOP_LOG_REPLICATION to no more") as caught:
        log.apply_topics([TopicSpec("t", replication=3)])
    assert not caught.value.retriable


def test_two_that_apply_at_once_both_succeed(kafka_url: str) -> None:
    created: list[str] = []
    errors: list[Exception] = []
    together = threading.Barrier(2)

    def apply() -> None:
        with open_log(kafka_url) as log:
            log.plan_topics()
            together.wait()
            try:
                created.extend(log.ensure_topics())
            except LogError as error:
                errors.append(error)

    threads = [threading.Thread(target=apply) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert set(created) == {spec.name for spec in TOPICS}


def test_a_new_topic_takes_events_as_soon_as_it_is_applied(kafka_url: str) -> None:
    def append(log: EventLog) -> int:
        message = events_pb2.FeedbackEvent(feedback_id="f")
        return log.append("t", Event.wrap(message, key="k", source="tests")).offset

    with open_log(kafka_url) as log:
        log.apply_topics([TopicSpec("t", partitions=12)])
        assert append(log) == 0
