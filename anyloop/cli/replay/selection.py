"""Which part of the log a replay learns from, and its copy into the replay's own log.

The range is one of the feedback topic: feedback is what is learned from. Its responses come with it, wherever they
stand: those that the feedback names, and for feedback on a whole conversation all of that conversation.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.records import point_in_time
from anyloop.log import FEEDBACK, RESPONSES, EventLog, PoisonEvent, Record
from protos.anyloop.v1 import events_pb2, types_pb2

BEGINNING = "beginning"
_OFFSET = re.compile(r"(\d+)@(\d+)")
_BATCH = 500

Offsets = dict[int, int]
Point = datetime | Offsets


def point(texts: Sequence[str]) -> Point:
    """A time, or offsets by partition. Raises CommandError on anything else, or on a mixture of both."""
    words = [word for text in texts for word in text.split(",") if word]
    if words == [BEGINNING]:
        return {}
    found = [_OFFSET.fullmatch(word) for word in words]
    if all(found):
        return {int(match[1]): int(match[2]) for match in found if match}
    if any(found) or len(words) != 1:
        raise CommandError(
            f"{' '.join(texts)!r}: give one point in time (2h, 2026-01-31T12:00:00Z), `{BEGINNING}`, or offsets of "
            "the feedback topic as PARTITION@OFFSET, one for each partition",
            ExitCode.USAGE,
        )
    return point_in_time(words[0])


def offsets_at(log: EventLog, topic: str, at: Point, otherwise: Offsets) -> Offsets:
    """The offset of every partition at a point; for partitions that the point does not name, `otherwise`.

    Raises CommandError for a partition or an offset that the topic does not have.
    """
    ends = log.end_offsets(topic)
    if isinstance(at, datetime):
        return {part: _first_since(log, topic, part, at, end) for part, end in ends.items()}
    for part, offset in at.items():
        if part not in ends:
            raise CommandError(f"{topic} has partitions 0 to {len(ends) - 1}, not {part}", ExitCode.NOT_FOUND)
        if offset > ends[part]:
            raise CommandError(f"{topic}[{part}] ends at {ends[part]}: there is no {offset} yet", ExitCode.NOT_FOUND)
    return {part: at.get(part, otherwise[part]) for part in ends}


@dataclass
class Selected:
    """What was found in the range, and what the found feedback speaks of."""

    feedback: int = 0
    responses: int = 0
    unreadable: int = 0
    earliest: datetime | None = None  # when the log took the first of the feedback
    media: set[str] = field(default_factory=set)  # SHA-256 of media in refinements
    events: dict[str, tuple[str, str, str]] = field(default_factory=dict)  # id -> response, conversation, worse one
    found: set[str] = field(default_factory=set)  # ids of responses
    conversations: set[str] = field(default_factory=set)  # of the responses found

    def add(self, record: Record) -> None:
        self.feedback += 1
        self.earliest = min(self.earliest or record.time, record.time)
        message = _message(record)
        if not isinstance(message, events_pb2.FeedbackEvent):
            self.unreadable += 1
            return
        said = message.feedback
        self.events[message.feedback_id] = (said.response_id, said.conversation_id, said.preferred_over)
        self.media |= {_sha256(part) for part in said.refinement} - {""}

    def names(self) -> set[str]:
        return {name for response, _, worse in self.events.values() for name in (response, worse) if name}

    def talks(self) -> set[str]:
        return {talk for response, talk, _ in self.events.values() if talk and not response}

    def usable(self) -> int:
        """Distinct feedback whose responses were found: what there is to learn from."""
        return sum(
            (response in self.found if response else talk in self.conversations) and (not worse or worse in self.found)
            for response, talk, worse in self.events.values()
        )


def copy_feedback(
    source: EventLog, target: EventLog, begin: Offsets, end: Offsets, step: Callable[[], None]
) -> Selected:
    """The feedback of a range into the replay's log, unchanged, in the order of each partition. `step` hears of each
    record read."""
    selected = Selected()

    def wanted() -> Iterator[Record]:
        for record in records_between(source, FEEDBACK, begin, end):
            step()
            selected.add(record)
            yield record

    _append(target, FEEDBACK, wanted())
    return selected


def responses_from(source: EventLog, selected: Selected, lookback: timedelta) -> Offsets:
    """Where in the responses topic the search begins: a time before the first of the feedback."""
    if selected.earliest is None:
        return source.end_offsets(RESPONSES)
    return offsets_at(source, RESPONSES, selected.earliest - lookback, {})


def copy_responses(
    source: EventLog, target: EventLog, selected: Selected, begin: Offsets, end: Offsets, step: Callable[[], None]
) -> None:
    """The responses that the feedback speaks of, among those from `begin` to `end`."""
    names, talks = selected.names(), selected.talks()

    def wanted() -> Iterator[Record]:
        for record in records_between(source, RESPONSES, begin, end):
            step()
            message = _message(record)
            if not isinstance(message, events_pb2.ResponseEvent):
                continue
            if message.response_id in names or message.conversation_id in talks:
                selected.responses += 1
                selected.found.add(message.response_id)
                selected.conversations.add(message.conversation_id)
                yield record

    _append(target, RESPONSES, wanted())


def said_at(record: Record) -> int:
    """When feedback was given, Unix milliseconds: a log that was copied has times of its own."""
    message = _message(record)
    given = message.created_unix_ms if isinstance(message, events_pb2.FeedbackEvent) else 0
    return int(given or record.time.timestamp() * 1000)


def _first_since(log: EventLog, topic: str, part: int, since: datetime, end: int) -> int:
    return next((record.offset for record in log.read(topic, partition=part, since=since, limit=1)), end)


def records_between(log: EventLog, topic: str, begin: Offsets, end: Offsets) -> Iterator[Record]:
    """What a topic holds from `begin` to before `end`, partition by partition."""
    for part, stop in end.items():
        if begin[part] < stop:
            for record in log.read(topic, partition=part, offset=begin[part]):
                if record.offset >= stop:
                    break
                yield record


def _append(log: EventLog, topic: str, records: Iterator[Record]) -> None:
    batch = []
    for record in records:
        batch.append(record.event)
        if len(batch) == _BATCH:
            log.append_many(topic, batch)
            batch = []
    if batch:
        log.append_many(topic, batch)


def _message(record: Record) -> object:
    try:
        return record.event.unwrap()
    except PoisonEvent:
        return None


def _sha256(part: types_pb2.ContentPart) -> str:
    return str(part.media.sha256) if part.WhichOneof("part") == "media" else ""
