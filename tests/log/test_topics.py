from pathlib import Path

import pytest

from anyloop.config import Settings
from anyloop.log import FEEDBACK, TOPICS, LogError, TopicSpec, open_log, topic_specs


def _settings(**changes: object) -> Settings:
    return Settings(_env_file=None, **changes)  # type: ignore[arg-type, call-arg]


def test_the_default_settings_give_the_standard_topics() -> None:
    assert topic_specs(_settings()) == TOPICS


def test_settings_reach_every_topic_but_checkpoints_stay_one_partition_and_are_never_forgotten() -> None:
    specs = {
        spec.name: spec
        for spec in topic_specs(
            _settings(log_partitions=12, log_replication=3, log_min_insync=2, log_retention_days=30)
        )
    }
    assert specs["anyloop.responses.v1"] == TopicSpec("anyloop.responses.v1", 12, False, 720, 3, 2)
    assert specs["anyloop.feedback.v1.dlq"] == TopicSpec("anyloop.feedback.v1.dlq", 12, False, 720, 3, 2)
    assert specs["anyloop.checkpoints.v1"] == TopicSpec("anyloop.checkpoints.v1", 1, True, None, 3, 2)
    assert specs["anyloop.checkpoints.v1.dlq"] == TopicSpec("anyloop.checkpoints.v1.dlq", 1, False, 720, 3, 2)


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"partitions": 0}, "at least one partition"),
        ({"compacted": True, "retention_hours": 1}, "is compacted"),
        ({"replication": 2, "min_insync": 3}, "ANYLOOP_LOG_MIN_INSYNC no higher than ANYLOOP_LOG_REPLICATION"),
    ],
)
def test_an_impossible_topic_is_refused(values: dict[str, int], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TopicSpec("t", **values)  # type: ignore[arg-type]


def test_a_plan_changes_nothing_and_says_what_it_would(tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        plan = log.plan_topics()
        assert [(change.topic, change.action) for change in plan] == [(spec.name, "create") for spec in TOPICS]
        assert log.plan_topics() == plan
        assert log.apply_topics() == plan
        assert log.plan_topics() == []


def test_a_refusal_stands_in_the_plan_and_stops_the_whole_change(tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        log.ensure_topics([TopicSpec(FEEDBACK, partitions=4)])
        wanted = [TopicSpec("new"), TopicSpec(FEEDBACK, partitions=8)]
        assert [(change.topic, change.action) for change in log.plan_topics(wanted)] == [
            ("new", "create"),
            (FEEDBACK, "refuse"),
        ]
        with pytest.raises(LogError, match=r"4 partitions, not 8; .* keep ANYLOOP_LOG_PARTITIONS=4, or begin"):
            log.apply_topics(wanted)
        assert log.plan_topics([TopicSpec("new")]) != []


def test_compaction_of_an_existing_topic_is_set(tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/log.db") as log:
        log.ensure_topics([TopicSpec("t")])
        (change,) = log.apply_topics([TopicSpec("t", compacted=True)])
        assert (change.action, change.settings) == ("configure", {"compacted": "1"})
        assert log.plan_topics([TopicSpec("t", compacted=True)]) == []


@pytest.mark.parametrize("wish", [{"retention_hours": 1.0}, {"replication": 2}, {"min_insync": 2}])
def test_the_embedded_log_refuses_what_it_cannot_do(wish: dict[str, float], tmp_path: Path) -> None:
    with open_log(f"sqlite://{tmp_path}/log.db") as log, pytest.raises(LogError, match="or use Kafka"):
        log.plan_topics([TopicSpec("t", **wish)])  # type: ignore[arg-type]
