"""Looks up whether the log has events already that were sent without an answer."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from anyloop.log.events import Event
from anyloop.log.interface import EventLog
from anyloop.log.partition import partition_of

logger = logging.getLogger(__name__)

# What a killed process had under way reaches the log within its timeouts. The rest is for clocks that differ.
_HORIZON = timedelta(minutes=15)
_RECORDS = 100_000  # of one partition: seconds of reading


def find(
    log: EventLog,
    topic: str,
    events: Sequence[Event],
    begin: Mapping[int, int] | None,
    ends: Mapping[int, int],
    at: float,
) -> dict[str, tuple[int, int]]:
    """Where those of `events` stand that the log has: partition and offset by event id.

    Looks between the offsets `begin` and `ends`, at records appended up to a quarter of an hour after `at` (Unix
    seconds, when the offsets `begin` were true). Where `begin` is not known, from a quarter of an hour before the
    oldest of the events. Raises LogError.
    """
    wanted: dict[int, set[str]] = {}
    for event in events:
        wanted.setdefault(partition_of(event.key, len(ends)), set()).add(event.id)
    horizon = datetime.fromtimestamp(at, UTC) + _HORIZON
    found: dict[str, tuple[int, int]] = {}
    oldest = min(event.time for event in events)
    for part, ids in wanted.items():
        first, last = 0 if begin is None else begin.get(part, 0), ends[part]
        if first >= last:
            continue
        if begin is None:
            records = log.read(topic, partition=part, since=oldest - _HORIZON)
        else:
            records = log.read(topic, partition=part, offset=first)
        for number, record in enumerate(records):
            if record.event.id in ids:
                ids.remove(record.event.id)
                found[record.event.id] = (part, record.offset)
            if not ids or record.time > horizon:
                break
            if number >= _RECORDS:
                logger.warning("looked for %d events in %d records of %s only", len(ids), _RECORDS, topic)
                break
    return found
