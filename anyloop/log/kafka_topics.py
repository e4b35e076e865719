"""Topics on a Kafka cluster: what differs from their specs, and the requests that change it.

Pure but for the admin client that is passed in; errors are kafka-python's own unless stated. Names get the prefix here
and nowhere else in what people see.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient
from kafka import errors as kafka
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType

from anyloop.log.errors import LogError
from anyloop.log.topics import TopicChange, TopicSpec, other_partitions

_HOUR_MS = 3_600_000
_SETTLE_S = 10.0  # brokers take over new settings within milliseconds of the controller's answer
_UNKNOWN = kafka.UnknownTopicOrPartitionError.errno
_WAYS_OUT = {
    kafka.InvalidReplicationFactorError: "set ANYLOOP_LOG_REPLICATION to no more than the cluster has brokers",
    kafka.TopicAuthorizationFailedError: "give this user Create and AlterConfigs on the topics (ACLs)",
    kafka.ClusterAuthorizationFailedError: "give this user Create on the cluster, or on the topics (ACLs)",
    kafka.PolicyViolationError: "the cluster's policy forbids it: set ANYLOOP_LOG_* to what it allows",
}


def topic_settings(spec: TopicSpec) -> dict[str, str]:
    """The settings of a topic that AnyLoop decides; all others are left to the cluster.

    The brokers' clock stamps the records, so that `read(since=...)` can be answered from their time index.
    """
    settings = {
        "cleanup.policy": "compact" if spec.compacted else "delete",
        "message.timestamp.type": "LogAppendTime",
        "retention.ms": "-1" if spec.retention_hours is None else str(round(spec.retention_hours * _HOUR_MS)),
    }
    if spec.min_insync is not None:
        settings["min.insync.replicas"] = str(spec.min_insync)
    return settings


def plan(admin: KafkaAdminClient, prefix: str, specs: Iterable[TopicSpec]) -> list[TopicChange]:
    """What differs, in the order of the specs."""
    wanted = list(specs)
    if not wanted:
        return []
    described = {topic["name"]: topic for topic in admin.describe_topics([prefix + spec.name for spec in wanted])}
    existing = [spec for spec in wanted if _exists(described[prefix + spec.name])]
    settings = _settings(admin, [prefix + spec.name for spec in existing])
    changes = []
    for spec in wanted:
        name = prefix + spec.name
        found = _difference(spec, described[name], settings[name]) if name in settings else _creation(spec)
        if found is not None:
            changes.append(found)
    return changes


def change(admin: KafkaAdminClient, prefix: str, specs: Sequence[TopicSpec], changes: Sequence[TopicChange]) -> None:
    """Carries out a plan that refuses nothing; returns when the topics can be used and another plan finds nothing."""
    by_name = {spec.name: spec for spec in specs}
    if created := [by_name[change.topic] for change in changes if change.action == "create"]:
        _create(admin, prefix, created)
    if altered := [change for change in changes if change.action == "configure"]:
        _alter(admin, prefix, altered)


def _exists(described: Mapping[str, Any]) -> bool:
    code = described["error_code"]
    if code not in (0, _UNKNOWN):
        raise kafka.for_code(code)(f"topic {described['name']}")
    return code == 0


def _settings(admin: KafkaAdminClient, names: Sequence[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    found = admin.describe_configs(resources, config_filter=ConfigFilterType.ALL).get("topic", {})
    return {name: {key: entry["value"] for key, entry in found.get(name, {}).items()} for name in names}


def _creation(spec: TopicSpec) -> TopicChange:
    settings = topic_settings(spec)
    copies = f", {spec.replication} copies" if spec.replication is not None else ""
    values = ", ".join(f"{key}={value}" for key, value in settings.items())
    detail = f"{spec.partitions} partition(s){copies}, {values}"
    return TopicChange(spec.name, "create", detail, settings=settings)


def _difference(spec: TopicSpec, described: Mapping[str, Any], settings: Mapping[str, str]) -> TopicChange | None:
    partitions = described["partitions"]
    if len(partitions) != spec.partitions:
        return other_partitions(spec, len(partitions))
    copies = min(len(partition["replica_nodes"]) for partition in partitions)
    if spec.replication is not None and copies != spec.replication:
        return TopicChange(
            spec.name,
            "refuse",
            f"{copies} copies, not {spec.replication}",
            f"add replicas with kafka-reassign-partitions.sh, or keep ANYLOOP_LOG_REPLICATION={copies}",
        )
    wanted = topic_settings(spec)
    changed = {key: value for key, value in wanted.items() if settings.get(key) != value}
    if not changed:
        return None
    values = ", ".join(f"{key}={value} (was {settings.get(key)})" for key, value in changed.items())
    return TopicChange(spec.name, "configure", values, settings=changed)


def _create(admin: KafkaAdminClient, prefix: str, specs: Sequence[TopicSpec]) -> None:
    requests = {
        prefix + spec.name: {
            "num_partitions": spec.partitions,
            "replication_factor": -1 if spec.replication is None else spec.replication,
            "configs": topic_settings(spec),
        }
        for spec in specs
    }
    for topic in admin.create_topics(requests, raise_errors=False)["topics"]:
        kind = kafka.for_code(topic["error_code"])
        if kind not in (kafka.NoError, kafka.TopicAlreadyExistsError):
            raise _refusal(kind, topic["name"].removeprefix(prefix), topic.get("error_message") or "")
    admin.wait_for_topics(list(requests))


def _alter(admin: KafkaAdminClient, prefix: str, changes: Sequence[TopicChange]) -> None:
    resources = [
        ConfigResource(ConfigResourceType.TOPIC, prefix + change.topic, dict(change.settings)) for change in changes
    ]
    for name, outcome in admin.alter_configs(resources)["topic"].items():
        if outcome != "OK":
            raise LogError(f"topic {name.removeprefix(prefix)}: its settings could not be changed: {outcome}")
    deadline = time.monotonic() + _SETTLE_S
    while not _settled(admin, prefix, changes):
        if time.monotonic() > deadline:
            names = ", ".join(change.topic for change in changes)
            raise LogError(f"the new settings of {names} do not show after {_SETTLE_S:g} seconds", retriable=True)
        time.sleep(0.05)


def _settled(admin: KafkaAdminClient, prefix: str, changes: Sequence[TopicChange]) -> bool:
    found = _settings(admin, [prefix + change.topic for change in changes])
    return all(change.settings.items() <= found[prefix + change.topic].items() for change in changes)


def _refusal(kind: type[kafka.KafkaError], topic: str, message: str) -> LogError:
    way_out = _WAYS_OUT.get(kind)
    text = f"topic {topic} could not be created: {message or kind.__name__}"
    return LogError(f"{text}; {way_out}" if way_out else text, retriable=bool(kind.retriable))
