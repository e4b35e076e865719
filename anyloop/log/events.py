"""Events as CloudEvents 1.0 in binary mode: attributes beside the payload, the payload one protobuf message."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from anyloop.log.errors import PoisonEvent
from anyloop.telemetry import context
from protos.anyloop.v1 import events_pb2

SPECVERSION = "1.0"
CONTENT_TYPE = "application/protobuf"

_MESSAGES: dict[str, type[Message]] = {
    descriptor.full_name: GetMessageClass(descriptor)
    for descriptor in events_pb2.DESCRIPTOR.message_types_by_name.values()
}


@dataclass(frozen=True)
class Event:
    """One event. `key` decides the partition; `id` is what consumers deduplicate by; `time` is aware UTC."""

    id: str
    source: str  # who says so, for example "services/policy"
    type: str  # full name of the protobuf message, for example "anyloop.v1.ResponseEvent"
    time: datetime
    key: str
    data: bytes
    # CloudEvents extension attributes: `traceparent` where it was said within a trace; dead letters carry dlqreason,
    # dlqtopic, dlqpartition, dlqoffset and dlqgroup.
    extensions: Mapping[str, str] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not self.id or not self.type:
            raise ValueError("an event needs an id and a type")
        if self.time.tzinfo is None:
            raise ValueError("the time of an event must carry a time zone")

    @classmethod
    def wrap(cls, message: Message, *, key: str, source: str, id: str | None = None) -> Self:
        """Pass `id` wherever the same fact may be sent twice: a random one hides the repetition. Said within a trace,
        the event carries its `traceparent` (CloudEvents' extension for distributed tracing)."""
        trace = context.traceparent()
        return cls(
            id=id or uuid.uuid4().hex,
            source=source,
            type=message.DESCRIPTOR.full_name,
            time=datetime.now(UTC),
            key=key,
            data=message.SerializeToString(),
            extensions={context.TRACEPARENT: trace} if trace else {},
        )

    def unwrap(self) -> Message:
        """The message, as the class named by `type`. Raises PoisonEvent on an unknown type or undecodable bytes."""
        message_class = _MESSAGES.get(self.type)
        if message_class is None:
            raise PoisonEvent(f"event {self.id}: no message type {self.type!r} in anyloop.v1")
        message = message_class()
        try:
            message.ParseFromString(self.data)
        except DecodeError as error:
            raise PoisonEvent(f"event {self.id}: {len(self.data)} bytes are not a {self.type}: {error}") from error
        return message

    def attributes(self) -> dict[str, str]:
        """The CloudEvents attributes by their specified names, extensions included."""
        return {
            "id": self.id,
            "source": self.source,
            "type": self.type,
            "time": self.time.astimezone(UTC).isoformat(),
            "specversion": SPECVERSION,
            **self.extensions,
        }

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, str], *, key: str, data: bytes) -> Self:
        """The inverse of `attributes`. Raises PoisonEvent when a required one is missing or malformed."""
        core = {"id", "source", "type", "time", "specversion"}
        try:
            return cls(
                id=attributes["id"],
                source=attributes["source"],
                type=attributes["type"],
                time=datetime.fromisoformat(attributes["time"]),
                key=key,
                data=data,
                extensions={name: value for name, value in attributes.items() if name not in core},
            )
        except (KeyError, ValueError) as error:
            raise PoisonEvent(f"not a CloudEvent: {error}") from error


@dataclass(frozen=True)
class Position:
    """Where an event stands in the log."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Record:
    """An event as read back. `time` is when the log appended it (aware UTC) and never decreases within a partition."""

    topic: str
    partition: int
    offset: int
    time: datetime
    event: Event
