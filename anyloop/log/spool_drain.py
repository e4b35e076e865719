"""Sends the events of an outbox to the log: in order, in batches, and none twice if it can be helped.

An append that was cut off (by a kill, by the network) may have reached the log. Before such events are sent again the
log is asked for their ids: from the offsets that stood at its end before they were sent, which the state file keeps.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from anyloop.log.errors import EventTooLarge, LogError
from anyloop.log.events import Event
from anyloop.log.interface import EventLog
from anyloop.log.spool_readback import find
from anyloop.log.spool_segments import SUFFIX, SegmentWriter, encode
from anyloop.log.spool_state import DrainState
from anyloop.telemetry import metrics

logger = logging.getLogger(__name__)

# From a log's first answer after a trouble to the look: what stood in its sockets is then appended, and a broker that
# was started again shows all that it holds.
_SETTLE_SECONDS = 1.0
_MARKS_SECONDS = 30.0  # after which the log's ends are asked for again, so that a readback stays short


class Sender:
    """One thread uses it. `save` stores `state`, which the sender changes; `left` says that an earlier process left
    events behind, some of which it may have sent."""

    def __init__(self, state: DrainState, save: Callable[[], None], rejected: Path, left: bool) -> None:
        self._state, self._save, self._rejected = state, save, rejected
        self._marked: dict[str, float] = {}  # when this process last asked for a topic's ends
        self._left = left
        self._unsure = set(state.marks) if left else set()  # topics that may have events sent without an answer
        self._unsettled = left

    def send(self, log: EventLog, topic: str, events: Sequence[Event]) -> None:
        """In the log when it returns. Raises LogError, or OSError when an event that the log refuses cannot be kept."""
        try:
            if self._left and topic not in self._state.marks:  # its marks may be lost, with the state or after it
                self._unsure.add(topic)
            if topic in self._unsure or time.monotonic() - self._marked.get(topic, float("-inf")) > _MARKS_SECONDS:
                events = self._without_known(log, topic, events)
            if events:
                self._append(log, topic, events)
        except LogError:
            self._unsure.add(topic)
            self._unsettled = True
            self._state.time = time.time()
            self._save()
            raise

    def _without_known(self, log: EventLog, topic: str, events: Sequence[Event]) -> Sequence[Event]:
        marks, state = self._state.marks, self._state
        if self._unsettled:
            log.end_offsets(topic)  # fails while the log is away
            time.sleep(_SETTLE_SECONDS)
            self._unsettled = False
        ends = log.end_offsets(topic)  # before the look: what arrives after it stands behind them
        if topic in self._unsure and (topic in marks or self._left):
            begin = marks.get(topic)
            found = find(log, topic, events, begin, ends, time.time() if begin is None else state.time)
            metrics.LOG_SPOOL_FOUND.inc(len(found))
            if len(found) == len(events):  # so what follows may be there too
                if begin is not None:
                    for part, offset in found.values():
                        begin[part] = max(begin.get(part, 0), offset + 1)
                return ()
            events = [event for event in events if event.id not in found]
        self._unsure.discard(topic)
        marks[topic] = ends
        self._marked[topic] = time.monotonic()
        state.time = time.time()
        self._save()
        return events

    def _append(self, log: EventLog, topic: str, events: Sequence[Event]) -> None:
        try:
            positions = log.append_many(topic, events)
        except EventTooLarge as error:
            self._unsure.add(topic)  # any prefix may have been appended
            if len(events) > 1:
                for event in events:  # one of them is the culprit
                    self.send(log, topic, [event])
            else:
                self._reject(topic, events[0], error)
        else:
            marks = self._state.marks.setdefault(topic, {})
            for position in positions:
                marks[position.partition] = max(marks.get(position.partition, 0), position.offset + 1)
            self._state.time = time.time()

    def _reject(self, topic: str, event: Event, error: LogError) -> None:
        self._rejected.mkdir(exist_ok=True)
        path = self._rejected / f"{time.time_ns()}{SUFFIX}"
        writer = SegmentWriter(path)
        try:
            writer.write(encode(topic, event))
            writer.sync()
        finally:
            writer.close()
        path.with_suffix(".reason").write_text(f"{error}\n", encoding="utf-8")
        logger.error("the log refuses event %s for %s, kept as %s: %s", event.id, topic, path.name, error)
