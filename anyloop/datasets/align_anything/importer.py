"""Records into the log: read, understood, their media stored, their events appended, each once.

The log decides what is imported already: its events are looked at when an import begins. So a run that was killed at
any instant, or one that is repeated, adds what is missing and nothing else, even where the notes of its progress are
lost.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from anyloop.datasets.align_anything.events import (
    SOURCE,
    Origin,
    Readied,
    build,
    event_ids,
    identity_of,
    said_kinds,
)
from anyloop.datasets.align_anything.keys import KeyTable
from anyloop.datasets.align_anything.mapping import Mapped, NotMapped, RawPart, map_record
from anyloop.datasets.fingerprint import fingerprint
from anyloop.datasets.media_values import MediaReader
from anyloop.datasets.progress import Progress
from anyloop.datasets.report import Report, writable
from anyloop.datasets.sources import RecordFile, SourceError, Unreadable
from anyloop.datasets.tokens import Content, ContentEncoder, NoTokens
from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, EventTooLarge
from anyloop.log.interface import check_size
from anyloop.media.limits import MediaError
from anyloop.media.store import MediaStore, StoredMedia
from anyloop.modality import Modality
from anyloop.sequence import LayoutError

_BATCH_RECORDS = 64
_BATCH_BYTES = 8 * 2**20  # of events that wait to be appended
UNKNOWN = "unknown"  # the subtask of records that none fits


@dataclass(frozen=True)
class Choice:
    """What of the data goes in, and under which name. `limit`: of each subtask only so many of its first records."""

    name: str = "align-anything"
    principal: str = "import:align-anything"
    subtasks: frozenset[str] = frozenset()
    limit: int | None = None
    only_trainable: bool = False


@dataclass
class _Batch:
    responses: list[Event] = field(default_factory=list)
    feedback: list[Event] = field(default_factory=list)
    records: int = 0

    def full(self) -> bool:
        waiting = sum(len(event.data) for event in (*self.responses, *self.feedback))
        return self.records >= _BATCH_RECORDS or waiting >= _BATCH_BYTES


class Importer:
    """`log` and `store` None: a dry run, which does all but write. `step` hears of every record."""

    def __init__(
        self,
        table: KeyTable,
        media: Callable[[RecordFile], MediaReader],
        encoder: ContentEncoder,
        choice: Choice,
        log: EventLog | None = None,
        store: MediaStore | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> None:
        self._table, self._media_of, self._encoder, self._choice = table, media, encoder, choice
        self._log, self._store, self._step = log, store, step
        self._known: set[str] = set()  # ids of events in the log
        self._newest = ""  # of those that this run met or wrote
        self._met: set[str] = set()  # identities of the records of this run

    @property
    def known(self) -> Set[str]:
        """Ids of the imported events in the log."""
        return self._known

    def know(self, log: EventLog, step: Callable[[], None] = lambda: None) -> None:
        """Looks at what earlier imports have left in the log."""
        for topic in (RESPONSES, FEEDBACK):
            for record in log.read(topic):
                step()
                if record.event.source == SOURCE:
                    self._known.add(record.event.id)

    def run(self, files: Sequence[RecordFile], progress: Progress) -> Report:
        """All files, from where `progress` stands. A file that breaks is told of in the report; the others go on.

        Raises LogError when the log refuses or is away: run again, then.
        """
        self._newest = progress.witness
        for file in files:
            subtask = self._table.subtask_of_path(file.name)
            if subtask and self._choice.subtasks and subtask not in self._choice.subtasks:
                continue
            try:
                self._file(file, subtask, progress)
                progress.report.files.pop(writable(file.name), None)
            except SourceError as error:
                progress.report.files[writable(file.name)] = writable(str(error))
        self._save(progress, done=True)
        return progress.report

    def _file(self, file: RecordFile, subtask: str | None, progress: Progress) -> None:
        """Raises SourceError when the file breaks, the records before that written."""
        media = self._media_of(file)
        at = progress.positions.get(file.name, 0)
        batch = _Batch()
        broken: SourceError | None = None
        rows = file.rows(at)
        while not self._enough(subtask, progress.report):
            try:
                row = next(rows, None)
            except SourceError as error:
                broken = error
                break
            if row is None:
                break
            self._record(_Record(file.name, at, subtask, media), row, batch, progress)
            at += 1
            self._step()
            if batch.full():
                self._write(batch)
                progress.positions[file.name] = at
                self._save(progress)
                batch = _Batch()
        self._write(batch)
        progress.positions[file.name] = at
        self._save(progress)
        if broken is not None:
            raise broken

    def _enough(self, subtask: str | None, report: Report) -> bool:
        """Whether all that a file of this subtask may hold, or one of any, has been read as often as is wanted."""
        limit = self._choice.limit
        if limit is None:
            return False
        wanted = [subtask] if subtask else self._choice.subtasks or self._table.subtasks
        return all(name in report.subtasks and report.of(name).read >= limit for name in wanted)

    def _save(self, progress: Progress, *, done: bool = False) -> None:
        if self._log is not None:
            progress.events, progress.witness = len(self._known) if self._newest else 0, self._newest
            progress.save(done=done)

    def _write(self, batch: _Batch) -> None:
        """Responses first: feedback that waits for its response would be reported as an orphan."""
        if self._log is not None:
            if batch.responses:
                self._log.append_many(RESPONSES, batch.responses)
            if batch.feedback:
                self._log.append_many(FEEDBACK, batch.feedback)
            for event in (*batch.responses, *batch.feedback):
                self._known.add(event.id)
                self._newest = event.id

    def _record(self, record: "_Record", row: dict[str, Any] | Unreadable, batch: _Batch, progress: Progress) -> None:
        batch.records += 1
        problems: dict[str, str] = {}
        subtask, outcome = record.subtask or UNKNOWN, "refused"
        try:
            if isinstance(row, Unreadable):
                raise _Refused("the record cannot be read", row.reason)
            try:
                mapped = map_record(row, self._table, record.subtask)
            except NotMapped as error:
                raise _Refused(str(error), ", ".join(sorted(row))) from error
            subtask = mapped.subtask
            if (self._choice.subtasks and subtask not in self._choice.subtasks) or self._enough(
                subtask, progress.report
            ):
                return
            tally = progress.report.of(subtask)
            for key in mapped.unknown:
                tally.unknown_key(key, record.where, row[key])
            problems |= dict.fromkeys(mapped.notes, "")
            outcome = self._take(record, row, mapped, batch, problems, progress)
        except _Refused as refusal:
            problems[refusal.kind] = refusal.detail
        except LayoutError:  # of the model, not of the record
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            problems["the record holds values that cannot be used"] = f"{type(error).__name__}: {error}"
        tally = progress.report.of(subtask)
        tally.read += 1
        setattr(tally, outcome, getattr(tally, outcome) + 1)
        for kind, detail in problems.items():
            tally.problem(kind, record.where, detail)
        if problems:
            progress.note(record.where, subtask, outcome, problems)

    def _take(
        self,
        record: "_Record",
        row: Mapping[str, Any],
        mapped: Mapped,
        batch: _Batch,
        problems: dict[str, str],
        progress: Progress,
    ) -> str:
        """Adds the events that the log does not have to the batch. Returns the outcome. Raises _Refused."""
        identity = identity_of(self._choice.name, fingerprint(row))
        if identity in self._met:
            return "repeated"
        self._met.add(identity)
        ids = event_ids(identity, mapped)
        if self._known.issuperset(ids):
            self._newest = self._newest or ids[-1]
            return "already"
        readied = self._readied(record, mapped, problems)
        if readied.no_tokens and self._choice.only_trainable:
            raise _Refused("left out: only trainable records are wanted", next(iter(readied.no_tokens.values())))
        origin = Origin(
            self._choice.name, record.file, record.index, identity, self._choice.principal, progress.begun_ms
        )
        responses, feedback = build(mapped, readied, origin)
        try:
            for event in (*responses, *feedback):
                check_size(event)
        except EventTooLarge as error:
            raise _Refused("too large for an event of the log", str(error)) from error
        batch.responses += [event for event in responses if event.id not in self._known]
        batch.feedback += [event for event in feedback if event.id not in self._known]
        progress.report.of(mapped.subtask).without_tokens += bool(readied.no_tokens)
        progress.report.count(["response", "response", *said_kinds(mapped)])
        return "imported"

    def _readied(self, record: "_Record", mapped: Mapped, problems: dict[str, str]) -> Readied:
        """The content with its media stored and its token ids made. Raises _Refused for a medium that cannot be had."""
        media: dict[str, StoredMedia] = {}
        prompt = self._content(mapped.prompt, record, media)
        first, second = (self._content(answer.parts, record, media) for answer in mapped.answers)
        better = tuple(self._content(answer.refinement, record, media) for answer in mapped.answers)
        prompt_tokens: Sequence[int] = ()
        tokens: list[Sequence[int]] = [(), ()]
        missing: dict[int, str] = {}
        for at, answer in enumerate((first, second)):
            try:
                prompt_tokens = prompt_tokens or self._encoder.prompt(prompt)
                tokens[at] = self._encoder.answer(answer, prompt_tokens)
            except NoTokens as error:
                missing[at] = error.kind
                problems[f"no token ids: {error.kind}"] = str(error)
        return Readied(
            prompt, (first, second), (better[0], better[1]), media, prompt_tokens, (tokens[0], tokens[1]), missing
        )

    def _content(
        self, parts: Sequence[RawPart], record: "_Record", media: dict[str, StoredMedia]
    ) -> tuple[Content, ...]:
        return tuple(self._part(part, record, media) for part in parts)

    def _part(self, part: RawPart, record: "_Record", media: dict[str, StoredMedia]) -> Content:
        if part.modality is Modality.TEXT:
            return Content(Modality.TEXT, text=part.value)
        try:
            file = record.media.read(part.value, part.modality)
        except MediaError as error:
            raise _Refused(f"the {part.modality} cannot be had", str(error)) from error
        if self._store is None:
            sha256 = hashlib.sha256(file.data).hexdigest()
            stored = StoredMedia(sha256, file.mime_type, len(file.data), file.modality)
        else:
            stored = self._store.put(file.data, file.mime_type)
        media[stored.sha256] = stored
        return Content(part.modality, data=file.data, sha256=stored.sha256)


@dataclass(frozen=True)
class _Record:
    file: str
    index: int
    subtask: str | None
    media: MediaReader

    @property
    def where(self) -> str:
        return f"{self.file}#{self.index}"


class _Refused(Exception):
    """`kind` is what records that fail alike have in common."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(kind)
        self.kind, self.detail = kind, detail


def counted(files: Sequence[RecordFile], table: KeyTable, choice: Choice) -> Iterator[tuple[RecordFile, int]]:
    """The files that the choice reads, with how many records each holds; 0 for one that is broken."""
    for file in files:
        subtask = table.subtask_of_path(file.name)
        if subtask is None or not choice.subtasks or subtask in choice.subtasks:
            try:
                yield file, file.count()
            except SourceError:
                yield file, 0
