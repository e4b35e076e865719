"""Dead letters: events that their consumer could not use, kept with the reason and with where they came from."""

import logging
from dataclasses import replace

from anyloop.log.events import Position, Record
from anyloop.log.interface import EventLog, dlq
from anyloop.telemetry import metrics

logger = logging.getLogger(__name__)

REPLAYS = "dlqreplays"  # extension attribute: how often an event was put back on its topic
_MAX_REASON = 2000  # characters: the largest event must fit its dead-letter topic too


def send_dead_letter(log: EventLog, group: str, record: Record, reason: str) -> Position:
    """Appends the event to its dead-letter topic, as `Consumer.dead_letter` says."""
    origin = {
        "dlqreason": reason[:_MAX_REASON],
        "dlqtopic": record.topic,
        "dlqpartition": str(record.partition),
        "dlqoffset": str(record.offset),
        "dlqgroup": group,
    }
    event = replace(record.event, extensions={**record.event.extensions, **origin})
    position = log.append(dlq(record.topic), event)
    metrics.DEAD_LETTERS.labels(record.topic).inc()
    logger.warning("dead letter from %s/%d@%d: %s", record.topic, record.partition, record.offset, reason)
    return position
