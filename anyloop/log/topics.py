"""The topics of the log, as they should be; and what would have to change for a log to have them so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from anyloop.log.errors import LogError

if TYPE_CHECKING:
    from anyloop.config import Settings

RESPONSES = "anyloop.responses.v1"
FEEDBACK = "anyloop.feedback.v1"
CRITIQUES = "anyloop.critiques.v1"
CHECKPOINTS = "anyloop.checkpoints.v1"
AUDIT = "anyloop.audit.v1"


def dlq(topic: str) -> str:
    """The dead-letter topic of a topic."""
    return topic + ".dlq"


@dataclass(frozen=True)
class TopicSpec:
    name: str
    partitions: int = 4
    compacted: bool = False  # the log may keep only the newest event of a key
    retention_hours: float | None = None  # events older than this may go; None keeps them for ever
    replication: int | None = None  # copies on different brokers; None is the cluster's default
    min_insync: int | None = None  # copies that must have an event before it counts as appended; None likewise

    def __post_init__(self) -> None:
        if self.partitions < 1:
            raise ValueError(f"topic {self.name} needs at least one partition")
        if self.compacted and self.retention_hours is not None:
            raise ValueError(f"topic {self.name} is compacted: it keeps the newest event of each key for ever")
        if self.replication is not None and self.min_insync is not None and self.min_insync > self.replication:
            raise ValueError(
                f"topic {self.name}: {self.min_insync} copies in sync of {self.replication} can never be: "
                "set ANYLOOP_LOG_MIN_INSYNC no higher than ANYLOOP_LOG_REPLICATION"
            )


@dataclass(frozen=True)
class TopicChange:
    """One topic that is not as specified. `refuse` is what no log can change in place."""

    topic: str
    action: Literal["create", "configure", "refuse"]
    detail: str
    way_out: str = ""  # of a refusal
    settings: Mapping[str, str] = field(default_factory=dict, hash=False)  # new values, by the store's own names


def refused(changes: Iterable[TopicChange]) -> LogError | None:
    """The error of a plan that cannot be carried out; None for one that can."""
    topics: dict[tuple[str, str], list[str]] = {}
    for change in changes:
        if change.action == "refuse":
            topics.setdefault((change.detail, change.way_out), []).append(change.topic)
    said = [f"{', '.join(names)}: {detail}; {way_out}" for (detail, way_out), names in topics.items()]
    return LogError(". ".join(said)) if said else None


def other_partitions(spec: TopicSpec, existing: int) -> TopicChange:
    """A key's events must stay together and in order, and its partition depends on how many there are."""
    return TopicChange(
        spec.name,
        "refuse",
        f"{existing} partitions, not {spec.partitions}",
        f"another number would move keys: keep ANYLOOP_LOG_PARTITIONS={existing}, or begin a new log "
        "(another file, or another prefix in kafka://HOST/PREFIX)",
    )


def standard_topics(
    partitions: int = 4,
    *,
    retention_hours: float | None = None,
    replication: int | None = None,
    min_insync: int | None = None,
) -> tuple[TopicSpec, ...]:
    """The four topics and their dead letters, and the audit trail, which nobody consumes.

    Checkpoint announcements are few and their order matters: one partition, the newest of each key is kept for ever.
    So does that of the audit trail, of which everything is kept for ever.
    """
    main = (
        *(
            TopicSpec(name, partitions, False, retention_hours, replication, min_insync)
            for name in (RESPONSES, FEEDBACK, CRITIQUES)
        ),
        TopicSpec(CHECKPOINTS, 1, True, None, replication, min_insync),
    )
    dead = (
        TopicSpec(dlq(spec.name), spec.partitions, False, retention_hours, replication, min_insync) for spec in main
    )
    return (*main, *dead, TopicSpec(AUDIT, 1, False, None, replication, min_insync))


def topic_specs(settings: "Settings") -> tuple[TopicSpec, ...]:
    """The standard topics as `ANYLOOP_LOG_*` want them."""
    return standard_topics(
        settings.log_partitions,
        retention_hours=None if settings.log_retention_days is None else settings.log_retention_days * 24,
        replication=settings.log_replication,
        min_insync=settings.log_min_insync,
    )


TOPICS = standard_topics()  # what the settings give by default
