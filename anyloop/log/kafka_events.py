"""Events on Kafka: CloudEvents 1.0 in binary mode, attributes as headers `ce_*`, the value one protobuf message."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from anyloop.log.errors import PoisonEvent
from anyloop.log.events import CONTENT_TYPE, SPECVERSION, Event, Record

Headers = list[tuple[str, bytes]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PREFIX = "ce_"
_CONTENT_TYPE = ("content-type", CONTENT_TYPE.encode())
_SPECVERSION = ("ce_specversion", SPECVERSION.encode())
FOREIGN = "foreign"  # type of a record that is no CloudEvent: `Event.unwrap` raises PoisonEvent


def headers_of(event: Event) -> Headers:
    return [
        _CONTENT_TYPE,
        _SPECVERSION,
        ("ce_id", event.id.encode()),
        ("ce_source", event.source.encode()),
        ("ce_type", event.type.encode()),
        ("ce_time", event.time.astimezone(UTC).isoformat().encode()),
        *((_PREFIX + name, value.encode()) for name, value in event.extensions.items()),
    ]


def record_of(topic: str, message: Any) -> Record:
    """From a ConsumerRecord of kafka-python; `topic` is the name without the log's prefix.

    A record that some other program wrote, without the headers of a CloudEvent, becomes an event of type "foreign"
    whose `unwrap` raises PoisonEvent: consumers send it to the dead letters instead of stopping at it for ever.
    """
    time = _EPOCH + timedelta(milliseconds=message.timestamp)
    return Record(topic, message.partition, message.offset, time, _event_of(topic, message, time))


def _event_of(topic: str, message: Any, time: datetime) -> Event:
    key = (message.key or b"").decode("utf-8", "replace")
    data = bytes(message.value or b"")
    try:
        return Event.from_attributes(_attributes(message.headers), key=key, data=data)
    except (PoisonEvent, UnicodeDecodeError) as error:
        return Event(
            id=f"{topic}-{message.partition}-{message.offset}",
            source="kafka",
            type=FOREIGN,
            time=time,
            key=key,
            data=data,
            extensions={"malformed": re.sub(r"\s+", " ", str(error))},
        )


def _attributes(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, str]:
    return {
        name[len(_PREFIX) :]: bytes(value).decode()
        for name, value in headers
        if name.startswith(_PREFIX) and value is not None
    }


def milliseconds(moment: datetime) -> int:
    """Kafka's clock, rounded up: the first that is not before `moment`."""
    return -((_EPOCH - moment) // timedelta(milliseconds=1))
