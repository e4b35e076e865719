"""`anyloop replay --dead-letters`: dead letters back onto their topic, each at most once.

What was put back stands on the topic with its id and the number of times it came back, `dlqreplays`; that is looked
up before anything is appended, so that a command killed anywhere repeats nothing. The offsets of a consumer group say
up to where all is settled and need not be looked at again; being its only member keeps two commands from working at
once.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.looking import opened_to_look
from anyloop.cli.output import console, print_json
from anyloop.cli.records import FLOWS, point_in_time, topic_name
from anyloop.cli.runfile import log_url
from anyloop.config import Settings
from anyloop.log import Consumer, Event, EventLog, LogError, Record, UnknownTopic, dlq
from anyloop.log.dead_letters import REPLAYS

GROUP = "anyloop.dead-letters"
_DEAD = ("dlqreason", "dlqtopic", "dlqpartition", "dlqoffset", "dlqgroup")
_COMMIT_EVERY = 100
_JOIN_S = 30.0


@dataclass
class Outcome:
    """What became of the dead letters of one topic; `reasons` counts those put back by why they were set aside."""

    topic: str
    replayed: int = 0
    before: int = 0  # put back by an earlier run
    filtered: int = 0
    given_up: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    error: str = ""


@dataclass(frozen=True)
class Choice:
    """Which dead letters. An empty `reason` and no `since` are all of them."""

    reason: str = ""
    since: datetime | None = None
    max_replays: int = 3

    def wants(self, record: Record) -> bool:
        said = record.event.extensions.get("dlqreason", "")
        return self.reason in said and (self.since is None or record.time >= self.since)


def put_back(topic: str, *, reason: str, since: str, max_replays: int, dry_run: bool, as_json: bool) -> None:
    """The command: every dead-letter topic, or that of `topic`. Exit code 1 when the log failed half-way."""
    names = [topic_name(topic.removesuffix(".dlq"))] if topic else list(FLOWS.values())
    choice = Choice(reason, point_in_time(since) if since else None, max_replays)
    work = would_put_back if dry_run else put_back_letters
    with opened_to_look(log_url(Settings())) as log:
        try:
            outcomes = [work(log, name, choice) for name in names]
        except UnknownTopic as error:
            raise CommandError(f"{error}; `anyloop topics list` shows what exists", ExitCode.NOT_FOUND) from error
        except LogError as error:
            raise CommandError(str(error), ExitCode.UNREACHABLE) from error
    _say(outcomes, dry_run, as_json)
    for outcome in outcomes:
        if outcome.error:
            raise CommandError(f"{outcome.topic}: {outcome.error}. Run the command again: it goes on from there")


def would_put_back(log: EventLog, topic: str, choice: Choice) -> Outcome:
    """What `put_back_letters` would do now. Changes nothing."""
    return _sort(log, topic, choice, append=lambda event: None, settled=lambda part, offset: None)


def put_back_letters(log: EventLog, topic: str, choice: Choice) -> Outcome:
    """Appends the chosen dead letters of `topic` to it and remembers. Raises LogError, CommandError before anything is
    done; a failure half-way stands in the outcome."""
    with _alone(log, dlq(topic)) as consumer:

        def settled(part: int, offset: int) -> None:
            consumer.commit({(dlq(topic), part): offset})

        return _sort(log, topic, choice, append=lambda event: log.append(topic, event), settled=settled)


def revived(event: Event) -> Event:
    """The event as it was, and how often it came back."""
    extensions = {name: value for name, value in event.extensions.items() if name not in _DEAD}
    return replace(event, extensions=extensions | {REPLAYS: str(replays_of(event) + 1)})


def replays_of(event: Event) -> int:
    """How often an event was put back; a count that is no number is none."""
    text = event.extensions.get(REPLAYS, "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def _sort(
    log: EventLog,
    topic: str,
    choice: Choice,
    *,
    append: Callable[[Event], object],
    settled: Callable[[int, int], None],
) -> Outcome:
    outcome = Outcome(topic)
    known = log.committed(GROUP, dlq(topic))
    ends = log.end_offsets(dlq(topic))
    waiting = {part: known.get(part, 0) for part, end in ends.items() if known.get(part, 0) < end}
    there = _put_back_before(log, topic, waiting)
    try:
        for part, begin in waiting.items():
            _sort_partition(log, topic, part, (begin, ends[part]), choice, there, outcome, append, settled)
    except LogError as error:
        outcome.error = str(error)
    return outcome


def _sort_partition(
    log: EventLog,
    topic: str,
    part: int,
    span: tuple[int, int],
    choice: Choice,
    there: set[tuple[str, int]],
    outcome: Outcome,
    append: Callable[[Event], object],
    settled: Callable[[int, int], None],
) -> None:
    through, kept, said = span[0], False, span[0]
    for record in log.read(dlq(topic), partition=part, offset=span[0]):
        if record.offset >= span[1]:
            break
        mark = (record.event.id, replays_of(record.event) + 1)
        if mark in there:
            outcome.before += 1
        elif replays_of(record.event) >= choice.max_replays:
            outcome.given_up += 1
            kept = True
        elif not choice.wants(record):
            outcome.filtered += 1
            kept = True
        else:
            append(revived(record.event))
            there.add(mark)
            outcome.replayed += 1
            outcome.reasons[record.event.extensions.get("dlqreason", "")] += 1
        if not kept:  # the group's offset must not pass a letter that was left
            through = record.offset + 1
        if through - said >= _COMMIT_EVERY:
            settled(part, through)
            said = through
    if through > said:
        settled(part, through)


def _put_back_before(log: EventLog, topic: str, waiting: Mapping[int, int]) -> set[tuple[str, int]]:
    """(id, times it came back) of what was put back since the first of the waiting letters was set aside."""
    times = [
        record.time
        for part, offset in waiting.items()
        for record in log.read(dlq(topic), partition=part, offset=offset, limit=1)
    ]
    if not times:
        return set()
    return {
        (record.event.id, replays_of(record.event))
        for record in log.read(topic, since=min(times))
        if REPLAYS in record.event.extensions
    }


@contextmanager
def _alone(log: EventLog, topic: str) -> Iterator[Consumer]:
    """The only member of the group. Raises CommandError while another command holds a partition."""
    with log.consumer(GROUP, [topic]) as consumer:
        wanted = {(topic, part) for part in log.end_offsets(topic)}
        deadline = time.monotonic() + _JOIN_S
        while not wanted <= consumer.positions().keys():
            if time.monotonic() > deadline:
                raise CommandError(
                    f"another command puts dead letters of {topic} back: wait until it has ended", ExitCode.REFUSED
                )
            consumer.poll(max_records=1, timeout=0.2)
        yield consumer


def _say(outcomes: list[Outcome], dry_run: bool, as_json: bool) -> None:
    if as_json:
        fields = ("topic", "replayed", "before", "filtered", "given_up", "error")
        names = {"before": "replayed_before", "filtered": "left_by_filter"}
        rows = [
            {names.get(name, name): getattr(one, name) for name in fields} | {"reasons": dict(one.reasons)}
            for one in outcomes
        ]
        print_json({"dry_run": dry_run, "topics": rows})
        return
    verb = "would be put back" if dry_run else "put back"
    for one in outcomes:
        left = [
            f"{count} {what}"
            for count, what in (
                (one.before, "put back before"),
                (one.filtered, "left by the filter"),
                (one.given_up, "given up: they came back too often (--max-replays)"),
            )
            if count
        ]
        if one.replayed or left:
            console.print(f"{one.topic}: {'; '.join([f'{one.replayed} {verb}', *left])}", highlight=False, markup=False)
        for reason, count in one.reasons.most_common():
            console.print(f"  {count} {reason}", highlight=False, markup=False)
    if not any(one.replayed or one.before or one.filtered or one.given_up for one in outcomes):
        console.print("No dead letters wait.")
