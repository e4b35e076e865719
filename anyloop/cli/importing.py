"""`anyloop import`: published preference data as events of the log, to learn from like anybody's feedback."""

import json
import os
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, errors, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.datasets.align_anything.importer import Choice, Importer
    from anyloop.datasets.align_anything.keys import KeyTable
    from anyloop.datasets.report import Report
    from anyloop.datasets.sources import Found
    from anyloop.log import EventLog

app = typer.Typer(no_args_is_help=True, help="Data from elsewhere into the log: align-anything.")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@app.callback()
def _several() -> None:
    """Data from elsewhere into the log."""


@app.command("align-anything")
def align_anything(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder (or file) of JSONL, JSON, Parquet or saved `datasets`.")
    ],
    subtask: Annotated[
        list[str] | None, typer.Option(help="Only this one (repeatable): T2I, or text-to-image.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many records of each subtask.")] = None,
    keys: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A key table (TOML) that extends ours; see docs/data.md.")
    ] = None,
    media_root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Where paths of media may begin, besides DIR and the file's own folder."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Part of every id: the same data under another name are imported anew.")
    ] = "align-anything",
    principal: Annotated[
        str, typer.Option(help="Who gave the feedback, where the data name nobody (default: import:NAME).")
    ] = "",
    only_trainable: Annotated[
        bool, typer.Option("--only-trainable", help="Leave out what has no token ids with this model.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and report; write nothing.")] = False,
    report_file: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="The report as JSON into a file too.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Turn the eight subtasks of align-anything into responses and feedback, each once, however often it is run.

    Run again after Ctrl-C or a crash, it goes on. Records that were not understood whole are told of in the report, and
    one by one in HOME/imports/NAME/records.jsonl. Exit code 1: nothing was understood, or a file is broken.
    """
    from anyloop.datasets.align_anything.importer import Choice
    from anyloop.datasets.align_anything.keys import KeysError, KeyTable
    from anyloop.datasets.progress import ImportRunning, only_one
    from anyloop.datasets.sources import SourceError, find_records
    from anyloop.sequence import LayoutError

    if not _NAME.fullmatch(name):
        raise CommandError(f"--name {name}: use up to 64 letters, digits, dots, dashes, underscores", ExitCode.USAGE)
    if report_file is not None:
        _check_report(report_file)
    settings = Settings()
    place = settings.home.absolute() / "imports" / name
    try:
        table = KeyTable.load(keys)
        wanted = frozenset(table.subtask(one) for one in subtask or [])
        choice = Choice(name, principal or f"import:{name}", wanted, limit, only_trainable)
        found = find_records(folder)
        with ExitStack() as stack:
            if not dry_run:
                stack.enter_context(only_one(place))
            report = _run(settings, found, folder, table, choice, media_root or [], place, dry_run, as_json)
    except KeysError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    except SourceError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from error
    except ImportRunning as error:
        raise CommandError(str(error), ExitCode.REFUSED) from error
    except LayoutError as error:
        raise CommandError(f"{error}: set ANYLOOP_MODEL_DIR to a whole model directory") from error
    document = {"dry_run": dry_run, "name": name, "records_file": _records_file(place), **report.to_dict()}
    if report_file is not None:
        try:
            report_file.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise CommandError(f"the data are in, and --report {report_file} cannot be written: {error}") from error
    if as_json:
        print_json(document)
    else:
        _show(report, dry_run, place)
    if report.files or (report.total("read") and report.total("refused") == report.total("read")):
        raise typer.Exit(ExitCode.FAILED)


def _run(
    settings: Settings,
    found: "Found",
    folder: Path,
    table: "KeyTable",
    choice: "Choice",
    media_roots: Sequence[Path],
    place: Path,
    dry_run: bool,
    as_json: bool,
) -> "Report":
    from anyloop.cli.runfile import log_url
    from anyloop.datasets.align_anything.importer import Importer, counted
    from anyloop.datasets.media_values import MediaReader
    from anyloop.datasets.progress import Progress as ImportProgress
    from anyloop.datasets.report import writable
    from anyloop.datasets.sources import RecordFile
    from anyloop.datasets.tokens import ContentEncoder
    from anyloop.media.limits import MediaLimits
    from anyloop.media.store import MediaStore

    limits = MediaLimits(
        max_image_bytes=settings.max_image_bytes,
        max_audio_bytes=settings.max_audio_bytes,
        max_video_bytes=settings.max_video_bytes,
    )
    roots = [*media_roots, folder if folder.is_dir() else folder.parent]

    def media(file: RecordFile) -> MediaReader:
        return MediaReader([file.path.parent, *roots], limits)

    encoder = ContentEncoder(settings.model_dir, settings.engine_max_tokens, limits)
    url = log_url(settings)
    source = {
        "folder": str(folder.absolute()),
        "log": url,
        "model": str(settings.model_dir),
        "keys": table.digest,
        "subtasks": sorted(choice.subtasks),
        "limit": choice.limit,
        "principal": choice.principal,
        "only_trainable": choice.only_trainable,
        "media_roots": [str(root) for root in media_roots],
    }
    files = dict(counted(found.files, table, choice))
    if not files:
        raise CommandError(
            f"none of the {len(found.files)} files is of {', '.join(sorted(choice.subtasks))}: leave --subtask out to "
            "see what there is",
            ExitCode.NOT_FOUND,
        )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        log = stack.enter_context(_opened(settings, url, dry_run))
        bars = stack.enter_context(Progress(*columns, console=errors, transient=True))
        looking = bars.add_task("Looking for earlier imports", total=None)
        reading = bars.add_task("Reading records", total=sum(files.values()))
        store = None if dry_run else MediaStore(settings.effective_media_url)
        importer = Importer(
            table, media, encoder, choice, None if dry_run else log, store, lambda: bars.advance(reading)
        )
        _know(importer, log, dry_run, lambda: bars.advance(looking))
        bars.remove_task(looking)
        stamps = {file.name: file.stamp() for file in files}
        progress = ImportProgress(place, source, resume=not dry_run, stamps=stamps, known=importer.known)
        progress.report.unread = {writable(suffix): count for suffix, count in found.unread.items()}
        if progress.resumed and not as_json:
            errors.print("Going on with an import that was interrupted.", highlight=False)
        bars.update(reading, completed=sum(progress.positions.values()))
        return importer.run(list(files), progress)


def _opened(settings: Settings, url: str, dry_run: bool) -> Any:
    """The log to write to, its topics there where it is the embedded one; a dry run makes none."""
    from anyloop.cli.looking import opened_to_look
    from anyloop.log import open_log, topic_specs

    if dry_run:
        return opened_to_look(url)
    log = open_log(url)
    if url.startswith("sqlite:"):
        log.apply_topics(topic_specs(settings))
    return log


def _know(importer: "Importer", log: "EventLog", dry_run: bool, step: Any) -> None:
    from anyloop.log import UnknownTopic

    try:
        importer.know(log, step)
    except UnknownTopic as error:
        if not dry_run:
            raise CommandError(f"{error}: make the topics with `anyloop topics apply`", ExitCode.NOT_FOUND) from error


def _check_report(path: Path) -> None:
    """Before hours of importing, not after them. Raises CommandError."""
    target = path if path.exists() else path.absolute().parent
    if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
        raise CommandError(f"--report {path} cannot be written: name a file in a folder of yours", ExitCode.USAGE)


def _records_file(place: Path) -> str:
    path = place / "records.jsonl"
    return str(path) if path.exists() and path.stat().st_size else ""


def _show(report: "Report", dry_run: bool, place: Path) -> None:
    table = Table(
        "subtask", "read", "imported", "already there", "repeated", "not understood", "without tokens", box=None
    )
    for name, one in sorted(report.subtasks.items()):
        counts = (one.read, one.imported, one.already, one.repeated, one.refused, one.without_tokens)
        table.add_row(name, *(str(count) for count in counts))
    if dry_run:
        console.print("Nothing was written. An import would do this:")
    console.print(table)
    if report.events:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.events.items()))
        console.print(f"Events, by what they carry: {kinds}", highlight=False)
    _show_tallies("What was not understood, or only in part", "reason", report, "problems")
    _show_tallies("Keys that the table does not name (--keys FILE adds them)", "key", report, "unknown_keys")
    for error in report.files.values():
        console.print(f"[bold red]broken:[/] {escape(error)}", highlight=False, soft_wrap=True)
    if report.unread:
        others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(report.unread.items()))
        console.print(f"Files that were not read: {escape(others)}", highlight=False)
    if not dry_run and (path := _records_file(place)):
        console.print(f"Record by record: {path}", highlight=False, soft_wrap=True)


def _show_tallies(title: str, heading: str, report: "Report", attribute: str) -> None:
    table = Table("subtask", heading, "records", "first", "for example", box=None, title=title, title_justify="left")
    for name, one in sorted(report.subtasks.items()):
        for what, tally in sorted(getattr(one, attribute).items(), key=lambda item: -item[1].count):
            table.add_row(name, escape(what), str(tally.count), escape(tally.where), escape(tally.example))
    if table.row_count:
        console.print()
        console.print(table)
