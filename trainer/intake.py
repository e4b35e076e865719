"""From the log into the join store: polls, sets poison aside, and remembers positions with the events.

Several trainers, each with a state of its own, share the partitions of one consumer group. The store's positions are
the truth and the group's committed offsets only show the lag: a partition that comes from another trainer is read from
where *this* store has read it, and a record that does not follow on what the store has is not applied.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime

from anyloop.log import FEEDBACK, RESPONSES, CommitFailed, Consumer, Event, EventLog, PoisonEvent, Record
from anyloop.log.dead_letters import REPLAYS
from anyloop.telemetry import metrics, tracing
from anyloop.telemetry.context import TRACEPARENT
from protos.anyloop.v1 import events_pb2
from trainer.fault_points import FaultPoint, reached
from trainer.join_store import JoinStore, Unjoined
from trainer.letters import SentLetters

log = logging.getLogger(__name__)

GROUP = "anyloop.trainer"
TOPICS = (RESPONSES, FEEDBACK)
_LOOK_EVERY_S = 5.0
_PATIENCE_S = 30.0  # of `drain`: longer than a killed member of the group keeps its partitions

Place = tuple[str, int]
Consumed = dict[Place, int]


class Intake:
    """Opening it asks nothing of the log; every method may raise LogError and may then be called again.

    `consumed` says how far checkpoints have read the log; it is asked anew when partitions come, for other trainers go
    on. `dedupe_s`: how long their feedback is remembered. Records that were consumed and are older are left out when a
    lost state is rebuilt or a partition taken over, for their ids are forgotten.
    """

    def __init__(
        self,
        event_log: EventLog,
        store: JoinStore,
        consumed: Callable[[], Consumed] = dict,
        dedupe_s: float = float("inf"),
    ) -> None:
        self._log, self._store = event_log, store
        self._ask_consumed, self._dedupe_s = consumed, dedupe_s
        self._consumed: Consumed = {}
        self._consumer: Consumer | None = None
        self._at = store.positions()
        self._handled: dict[Place, int] = {}  # partitions held: up to where others have set poison aside
        self._told: dict[Place, int] = {}  # what the group knows of it
        self._letters = SentLetters(event_log, GROUP)
        self._looked = 0.0

    def poll(self, timeout: float) -> tuple[int, int]:
        """Takes what is there. Returns (records applied, new feedback events)."""
        consumer = self._open()
        records = consumer.poll(max_records=1000, timeout=timeout)
        reached(FaultPoint.POLLED)
        self._note_held(consumer)
        applied, new = self._apply(self._following(records))
        self._look_around()
        self._align(consumer)
        self._commit(consumer)
        return applied, new

    def held(self) -> set[int]:
        """The feedback partitions that are this trainer's at present."""
        return {part for topic, part in self._positions() if topic == FEEDBACK}

    def drain(self, timeout: float = 0.5) -> int:
        """Reads to the present end of all partitions that can be had. Returns the new feedback events."""
        self._open()
        ends = self._ends()
        total, deadline = 0, time.monotonic() + _PATIENCE_S
        while missing := {
            place for place, end in ends.items() if self._at.get(place, 0) < end or place not in self._positions()
        }:
            read, new = self.poll(timeout)
            total += new
            if read:
                deadline = time.monotonic() + _PATIENCE_S
            elif time.monotonic() > deadline:
                if not self.held():
                    raise TimeoutError("the log gave this trainer no partition: others hold all of them")
                log.warning("going on without what other trainers hold: %s", sorted(missing))
                break
        return total

    def dead_letter(self, one: Unjoined, reason: str) -> None:
        """Feedback from the store to the dead letters, once; durable when it returns."""
        if self._letters.sent(FEEDBACK, (one.partition, one.offset, one.event.feedback_id)):
            return  # before a kill, or by another trainer that had the partition
        event, key = one.event, one.event.feedback.conversation_id or one.event.feedback.response_id
        said = datetime.fromtimestamp(event.created_unix_ms / 1000, UTC)
        data, back = event.SerializeToString(), {REPLAYS: str(one.replays)} if one.replays else {}
        letter = Event(event.feedback_id, "trainer", event.DESCRIPTOR.full_name, said, key, data, back)
        self._send_letter(Record(FEEDBACK, one.partition, one.offset, said, letter), reason)

    def close(self) -> None:
        """Idempotent."""
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    # Where to read

    def _open(self) -> Consumer:
        if self._consumer is None:
            places = self._ends()
            self._begin_again_if_made_anew(places)
            consumer = self._log.consumer(GROUP, list(TOPICS))
            try:
                for topic, partition in places:
                    consumer.seek(topic, partition, self._at.get((topic, partition), 0))
            except BaseException:
                consumer.close()  # or it would hold its partitions for ever
                raise
            self._consumer = consumer
            self._handled = {}  # others may have had the partitions meanwhile
        return self._consumer

    def _ends(self) -> dict[Place, int]:
        return {(topic, part): end for topic in TOPICS for part, end in self._log.end_offsets(topic).items()}

    def _begin_again_if_made_anew(self, ends: Mapping[Place, int]) -> None:
        """A log that ends before what was read of it is another log: ids tell what of it is known."""
        for place, at in self._at.items():
            if ends.get(place, at) < at:
                log.error("%s/%d ends at %d, %d were read: the log was made anew, reading all", *place, ends[place], at)
                self._at = dict.fromkeys(self._at, 0)
                self._handled, self._told = {}, {}
                self._letters = SentLetters(self._log, GROUP)
                return

    def _positions(self) -> dict[Place, int]:
        return self._consumer.positions() if self._consumer is not None else {}

    def _note_held(self, consumer: Consumer) -> None:
        held = consumer.positions().keys()
        if held - self._handled.keys():
            self._letters.look_again()
            self._consumed = self._ask_consumed()
        for topic in {topic for topic, _ in held - self._handled.keys()}:
            committed = self._log.committed(GROUP, topic)
            found = {place: committed.get(place[1], 0) for place in held - self._handled.keys() if place[0] == topic}
            self._handled |= found
            self._told |= found
        self._handled = {place: upto for place, upto in self._handled.items() if place in held}

    def _following(self, records: Sequence[Record]) -> list[Record]:
        """The records that continue what the store has."""
        at = dict(self._at)
        kept, elsewhere = [], set()
        for record in records:
            place = record.topic, record.partition
            expected = at.get(place, 0)
            if record.offset < expected or place in elsewhere:
                continue
            if record.offset > expected and not self._is_gap(place, expected, record.offset):
                elsewhere.add(place)
                continue
            kept.append(record)
            at[place] = record.offset + 1
        return kept

    def _is_gap(self, place: Place, expected: int, found: int) -> bool:
        """Whether the log itself has nothing from `expected` up to `found`, by retention or compaction."""
        first = next(iter(self._log.read(place[0], partition=place[1], offset=expected, limit=1)), None)
        if (self._log.end_offsets(place[0])[place[1]] != found) if first is None else (first.offset < found):
            return False
        if place in self._at:  # else nothing of it was ever read: the log is older than this state
            log.warning("%s/%d: %d records were gone before they were read", *place, found - expected)
            metrics.TRAINER_GAP.labels(place[0]).inc(found - expected)
        return True

    def _align(self, consumer: Consumer) -> None:
        """Sets partitions that stand elsewhere, such as those taken over from another trainer, to the store's place."""
        for place, stands in consumer.positions().items():
            at = self._at.get(place, 0)
            if stands > at and self._is_gap(place, at, stands):
                self._at[place] = stands
                self._store.apply([], [], {place: stands})
            elif stands != at:
                consumer.seek(*place, at)

    def _commit(self, consumer: Consumer) -> None:
        """Tells the group where this state is, be it that a killed one could not any more."""
        held = consumer.positions().keys()
        ahead = {place: self._at[place] for place in held & self._at.keys() if self._told.get(place) != self._at[place]}
        if not ahead:
            return
        try:
            consumer.commit(ahead)
            self._told |= ahead
        except CommitFailed as error:  # the store has what was read; whoever holds the partition now reads it too
            log.info("not committed: %s", error)
        reached(FaultPoint.COMMITTED)

    def _look_around(self) -> None:
        if time.monotonic() - self._looked > _LOOK_EVERY_S:
            self._looked = time.monotonic()
            self._begin_again_if_made_anew(self._ends())

    # What to make of it

    def _apply(self, records: Collection[Record]) -> tuple[int, int]:
        if not records:
            return 0, 0
        responses, feedback = [], []
        put_back: dict[str, int] = {}
        places: dict[str, tuple[int, int]] = {}
        positions: dict[Place, int] = {}
        for record in records:
            positions[record.topic, record.partition] = record.offset + 1
            if self._forgotten(record):
                metrics.TRAINER_LEFT_OUT.labels("beyond_dedupe_window").inc()
                continue
            message = self._message(record)
            if isinstance(message, events_pb2.ResponseEvent):
                responses.append(message)
            elif isinstance(message, events_pb2.FeedbackEvent):
                feedback.append(message)
                name, back = message.feedback_id, _replays_of(record.event)
                if back > put_back.get(name, 0):
                    put_back[name] = back
                    places[name] = record.partition, record.offset
                places.setdefault(name, (record.partition, record.offset))
        self._store.traces.keep(_traces(records), time.time())
        new = self._store.apply(responses, feedback, positions, places, put_back)
        self._at |= positions
        if new < len(feedback):
            metrics.TRAINER_LEFT_OUT.labels("duplicate").inc(len(feedback) - new)
        reached(FaultPoint.APPLIED)
        return len(records), new

    def _forgotten(self, record: Record) -> bool:
        if record.offset >= self._consumed.get((record.topic, record.partition), 0):
            return False
        return record.topic == FEEDBACK and time.time() - record.time.timestamp() > self._dedupe_s

    def _message(self, record: Record) -> object:
        expected = events_pb2.ResponseEvent if record.topic == RESPONSES else events_pb2.FeedbackEvent
        try:
            message = record.event.unwrap()
        except PoisonEvent as error:
            fault = str(error)
        else:
            if isinstance(message, expected):
                fault = fault_of(message)
            else:
                fault = f"{record.event.type} does not belong on {record.topic}"
            if not fault:
                return message
        self._set_aside(record, fault)
        return None

    def _set_aside(self, record: Record, reason: str) -> None:
        place = record.topic, record.partition
        if record.offset < self._handled.get(place, 0):
            return  # by whoever held the partition before, or by a state that is lost
        if self._letters.sent(record.topic, (record.partition, record.offset, record.event.id)):
            return  # before a kill, or before what came with it could not be applied
        log.error("%s/%d@%d goes to the dead letters: %s", *place, record.offset, reason)
        self._send_letter(record, reason)
        reached(FaultPoint.SET_ASIDE)

    def _send_letter(self, record: Record, reason: str) -> None:
        self._open().dead_letter(record, reason)
        self._letters.add(record.topic, (record.partition, record.offset, record.event.id))


def _traces(records: Collection[Record]) -> dict[str, str]:
    """The traces of the events that came within one, by event id; each such trace shows that the trainer read it."""
    found = {}
    for record in records:
        parent = record.event.extensions.get(TRACEPARENT, "")
        if not parent:
            continue
        found[record.event.id] = parent
        place = {"messaging.destination.name": record.topic, "messaging.consumer.group.name": GROUP}
        attributes = {"messaging.system": "anyloop", "messaging.operation.type": "process", **place}
        tracing.start(f"process {record.topic}", kind="consumer", parent=parent, attributes=attributes).end()
    return found


def _replays_of(event: Event) -> int:
    """How often it came back from the dead letters; a count that is no number is the first."""
    text = event.extensions.get(REPLAYS, "0")
    return int(text) if text.isascii() and text.isdigit() else 1


def fault_of(message: events_pb2.ResponseEvent | events_pb2.FeedbackEvent) -> str:
    """Why a message that can be read is of no use; "" when nothing speaks against it."""
    if isinstance(message, events_pb2.ResponseEvent):
        if not message.response_id:
            return "a response without an id"
        tokens, logprobs = len(message.output_token_ids), len(message.output_logprobs)
        if logprobs not in (0, tokens):
            return f"a response with {tokens} tokens and {logprobs} log-probabilities"
        return ""
    said = message.feedback
    if not message.feedback_id:
        return "feedback without an id"
    if not said.response_id and not said.conversation_id:
        return "feedback that names neither a response nor a conversation"
    wrong = [f"{name}={rating}" for name, rating in said.ratings.items() if not 0 <= rating <= 1]
    return f"ratings outside 0 to 1: {', '.join(wrong)}" if wrong else ""
