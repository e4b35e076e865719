"""`anyloop export`: what the log has joined, as training sets for TRL and `datasets`."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.progress import Progress
from rich.table import Table

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.datasets.export.conversations import Row
    from anyloop.datasets.export.examples import Examples
    from anyloop.datasets.export.places import MediaPlaces
    from anyloop.log import EventLog
    from protos.anyloop.v1 import events_pb2

_SUFFIXES = {".jsonl": "jsonl", ".parquet": "parquet"}


def export(
    to: Annotated[
        Path, typer.Option("--to", metavar="DIR|FILE", help="A new folder for all sets, or a .jsonl or .parquet file.")
    ],
    form: Annotated[
        Literal["trl"], typer.Option("--format", help="trl: TRL's conversational form, which `datasets` reads.")
    ] = "trl",
    begin: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            metavar="TIME|PARTITION@OFFSET",
            help="First feedback: 2h, 3d, an ISO 8601 time, `beginning` (default), or offsets of the feedback topic.",
        ),
    ] = None,
    until: Annotated[
        list[str] | None,
        typer.Option(
            "--until",
            metavar="TIME|PARTITION@OFFSET",
            help="Where to end, this one not included; default: what the log holds now.",
        ),
    ] = None,
    files: Annotated[Literal["jsonl", "parquet"], typer.Option(help="What the files of a folder are.")] = "jsonl",
    chosen: Annotated[str, typer.Option("--set", help="With a file: the set that it gets.")] = "preference",
    media: Annotated[
        Literal["link", "copy", "inline"],
        typer.Option(help="Media stay in the store and are named, are copied beside the rows, or go into them."),
    ] = "link",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write preferences (prompt, chosen, rejected), critiques (prompt, completion) and labels, each statement once.

    Who said it is not exported. Rows with media come as sets of their own, with content parts and columns of media.
    """
    from anyloop.cli.export_place import check_place, replacing
    from anyloop.datasets.export import writer

    one = _SUFFIXES.get(to.suffix.lower())
    if one is None and to.suffix:
        raise CommandError(f"--to {to}: name a folder, or a file that ends in .jsonl or .parquet", ExitCode.USAGE)
    if one and chosen not in writer.WHAT:
        raise CommandError(f"--set {chosen}: there are {', '.join(writer.WHAT)}", ExitCode.USAGE)
    if one and media == "copy":
        raise CommandError("--media copy needs a folder to copy into: name one with --to", ExitCode.USAGE)
    kind: Literal["jsonl", "parquet"] = "parquet" if "parquet" in (one, None if one else files) else "jsonl"
    check_place(to, is_file=bool(one), overwrite=overwrite)
    if kind == "parquet":
        _need_pyarrow()
    settings = Settings()
    examples = _examples(settings, begin or [], until or [])
    with replacing(to, is_file=bool(one)) as place:
        rows, left_out = _write(settings, examples, place, kind, media, chosen if one else "")
        if one and chosen not in rows:
            others = ", ".join(f"{count} in {name}" for name, count in rows.items())
            hint = f"; choose with --set: {others}" if others else ""
            raise CommandError(f"no feedback of this range makes a row of {chosen}{hint}", ExitCode.NOT_FOUND)
        if not rows:
            raise CommandError("no feedback of this range makes an example", ExitCode.NOT_FOUND)
        if not one:
            (place / "README.md").write_text(writer.card(rows, kind, media), encoding="utf-8")
    if as_json:
        written = {chosen: rows[chosen]} if one else rows
        print_json(
            {"to": str(to), "rows": written, "not_in_the_file": dict(rows.items() - written.items())}
            | {"left_out": dict(left_out)}
        )
        return
    _show(rows, left_out, to, chosen if one else "")


def _examples(settings: Settings, begin: list[str], until: list[str]) -> "Examples":
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.replay import selection
    from anyloop.cli.runfile import log_url
    from anyloop.datasets.export.examples import form
    from anyloop.log import FEEDBACK, UnknownTopic
    from anyloop.log.join import join

    first, last = selection.point(begin or [selection.BEGINNING]), selection.point(until) if until else None
    with opened_to_look(log_url(settings)) as log, Progress(console=errors, transient=True) as bars:
        bar = bars.add_task("Reading the log", total=None)
        try:
            ends = log.end_offsets(FEEDBACK)
            start = selection.offsets_at(log, FEEDBACK, first, dict.fromkeys(ends, 0))
            stop = selection.offsets_at(log, FEEDBACK, last, ends) if last is not None else ends
            feedback, responses, broken = _events(log, start, stop, lambda: bars.advance(bar))
            joined, waiting = join(feedback, responses)
        except UnknownTopic as error:
            raise CommandError(f"{error}: nothing was ever logged here", ExitCode.NOT_FOUND) from error
    examples = form(joined)
    if broken:
        examples.left_out["an event that cannot be read"] = broken
    if waiting:
        examples.left_out["the response is not in the log"] = len(waiting)
    return examples


def _events(
    log: "EventLog", start: dict[int, int], stop: dict[int, int], step: Callable[[], None]
) -> "tuple[list[events_pb2.FeedbackEvent], list[events_pb2.ResponseEvent], int]":
    """The feedback of the range, the responses that it speaks of, wherever they stand, and how many events of the range
    or among the responses cannot be read."""
    from anyloop.cli.replay.selection import records_between
    from anyloop.log import FEEDBACK, RESPONSES, PoisonEvent
    from protos.anyloop.v1 import events_pb2

    feedback: list[events_pb2.FeedbackEvent] = []
    responses: list[events_pb2.ResponseEvent] = []
    broken = 0
    for record in records_between(log, FEEDBACK, start, stop):
        step()
        try:
            message = record.event.unwrap()
        except PoisonEvent:
            broken += 1
            continue
        if isinstance(message, events_pb2.FeedbackEvent):
            feedback.append(message)
    names = {name for one in feedback for name in (one.feedback.response_id, one.feedback.preferred_over) if name}
    talks = {one.feedback.conversation_id for one in feedback if not one.feedback.response_id}
    for record in log.read(RESPONSES):
        step()
        try:
            message = record.event.unwrap()
        except PoisonEvent:
            broken += 1
            continue
        if isinstance(message, events_pb2.ResponseEvent) and (
            message.response_id in names or message.conversation_id in talks
        ):
            responses.append(message)
    return feedback, responses, broken


def _write(
    settings: Settings,
    examples: "Examples",
    place: Path,
    kind: Literal["jsonl", "parquet"],
    media: Literal["link", "copy", "inline"],
    only: str,
) -> tuple[dict[str, int], Counter[str]]:
    """Writes every set into a folder, or the one set into a file. Returns the rows of each set, those of sets that are
    not written too, and what was left out."""
    from anyloop.datasets.export import writer
    from anyloop.datasets.export.places import MediaPlaces
    from anyloop.media.store import MediaNotFound, MediaStore

    structs = kind == "parquet"
    places = MediaPlaces(MediaStore(settings.effective_media_url), media, place, structs=structs)
    left_out: Counter[str] = Counter(examples.left_out)
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        writers: dict[str, writer.RowWriter] = {}
        for name, make in _rows(examples, places):
            if not only or name == only:
                try:
                    row = make()
                except MediaNotFound:
                    left_out["a medium is no longer in the store"] += 1
                    continue
                if name not in writers:
                    path = place if only else place / f"{name}.{kind}"
                    opened = writer.RowWriter(path, name, kind, inline=structs and media == "inline")
                    writers[name] = stack.enter_context(opened)
                writers[name].write(row)
            counts[name] += 1
    return {name: counts[name] for name in writer.sets_of(counts)}, left_out


def _rows(examples: "Examples", places: "MediaPlaces") -> "Iterator[tuple[str, Callable[[], Row]]]":
    """The set of each example, and its row when it is asked for: that may copy a medium."""
    from anyloop.datasets.export import conversations as form

    for pair in examples.preferences:
        yield form.preference_set(pair), partial(form.preference_row, pair, places)
    for critique in examples.critiques:
        yield form.critique_set(critique), partial(form.critique_row, critique, places)
    for label in examples.labels:
        yield form.label_set(label), partial(form.label_row, label, places)


def _need_pyarrow() -> None:
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise CommandError("Parquet files need pyarrow: pip install 'anyloop[data]', or write JSON Lines")


def _show(rows: dict[str, int], left_out: Counter[str], to: Path, only: str) -> None:
    table = Table("set", "rows", box=None)
    for name, count in rows.items():
        table.add_row(name, f"{count} (not in the file)" if only and name != only else str(count))
    console.print(table)
    for reason, count in left_out.most_common():
        console.print(f"left out: {count} × {reason}", highlight=False)
    console.print(f"Written to {to}", highlight=False, soft_wrap=True)
