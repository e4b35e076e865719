"""From the log into the join store: polls, sets poison aside, and remembers positions with the events."""

import logging
from datetime import UTC, datetime

from anyloop.log import FEEDBACK, RESPONSES, Consumer, EventLog, PoisonEvent, Record
from anyloop.telemetry import metrics
from protos.anyloop.v1 import events_pb2
from trainer.join_store import JoinStore

log = logging.getLogger(__name__)

GROUP = "anyloop.trainer"
TOPICS = (RESPONSES, FEEDBACK)


class Intake:
    """The trainer's consumer. The store's positions are the truth; the group's committed offsets only show the lag."""

    def __init__(self, event_log: EventLog, store: JoinStore) -> None:
        self._log, self._store = event_log, store
        self._consumer: Consumer = event_log.consumer(GROUP, list(TOPICS))
        known = store.positions()
        for topic in TOPICS:
            for partition in event_log.end_offsets(topic):
                self._consumer.seek(topic, partition, known.get((topic, partition), 0))

    def poll(self, timeout: float) -> tuple[int, int]:
        """Takes what is there. Returns (records read, new feedback events)."""
        records = self._consumer.poll(max_records=1000, timeout=timeout)
        if not records:
            return 0, 0
        responses, feedback = [], []
        positions: dict[tuple[str, int], int] = {}
        for record in records:
            message = self._message(record)
            if isinstance(message, events_pb2.ResponseEvent):
                responses.append(message)
            elif isinstance(message, events_pb2.FeedbackEvent):
                feedback.append(message)
            positions[record.topic, record.partition] = record.offset + 1
        new = self._store.apply(responses, feedback, positions)
        self._consumer.commit()
        for topic in TOPICS:
            metrics.LOG_LAG.labels(GROUP, topic).set(self._log.lag(GROUP, [topic]))
        return len(records), new

    def drain(self, timeout: float = 2.0) -> int:
        """Reads to the present end of the topics. Returns the new feedback events."""
        ends = {(topic, part): end for topic in TOPICS for part, end in self._log.end_offsets(topic).items()}
        total = 0
        deadline = datetime.now(UTC).timestamp() + 30 * timeout
        while datetime.now(UTC).timestamp() < deadline:
            at = self._store.positions()
            if all(at.get(place, 0) >= end for place, end in ends.items()):
                return total
            total += self.poll(timeout)[1]
        raise TimeoutError("the log did not deliver all its records in time: another trainer may hold its partitions")

    def close(self) -> None:
        self._consumer.close()

    def _message(self, record: Record) -> object:
        try:
            message = record.event.unwrap()
        except PoisonEvent as error:
            self._set_aside(record, str(error))
            return None
        expected = events_pb2.ResponseEvent if record.topic == RESPONSES else events_pb2.FeedbackEvent
        if not isinstance(message, expected):
            self._set_aside(record, f"{record.event.type} does not belong on {record.topic}")
            return None
        return message

    def _set_aside(self, record: Record, reason: str) -> None:
        log.error("%s/%d@%d goes to the dead letters: %s", record.topic, record.partition, record.offset, reason)
        self._consumer.dead_letter(record, reason)
