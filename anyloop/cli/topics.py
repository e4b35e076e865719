"""`anyloop topics`: the explicit admin step that makes the topics what the settings say, and their state."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, console, print_json
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.log import EventLog, TopicChange

_PLANNED = {"create": "would create", "configure": "would set on", "refuse": "cannot change"}
_DONE = {"create": "created", "configure": "set on", "refuse": "cannot change"}
app = typer.Typer(no_args_is_help=True, help="Topics of the event log: list, apply.")


@app.command("list")
def list_topics(
    group: Annotated[list[str] | None, typer.Option(help="Also show the lag of this consumer group.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Every topic with its events, partition by partition, and the lag of consumer groups."""
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.runfile import log_url
    from anyloop.log import TOPICS, UnknownTopic

    rows: list[dict[str, Any]] = []
    with opened_to_look(log_url(Settings())) as log:
        for spec in TOPICS:
            try:
                ends = log.end_offsets(spec.name)
            except UnknownTopic:
                rows.append({"topic": spec.name, "exists": False, "end_offsets": {}, "lag": {}, "lag_by_partition": {}})
                continue
            begins = log.begin_offsets(spec.name) if group else {}
            behind = {name: _behind(begins, ends, log.committed(name, spec.name)) for name in group or []}
            rows.append(
                {
                    "topic": spec.name,
                    "exists": True,
                    "end_offsets": ends,
                    "lag": {name: sum(parts.values()) for name, parts in behind.items()},
                    "lag_by_partition": behind,
                }
            )
    if as_json:
        print_json(rows)
        return
    table = Table(
        "topic", "events", "by partition", *(f"lag of {name}, by partition" for name in group or []), box=None
    )
    for row in rows:
        ends = row["end_offsets"]
        total = str(sum(ends.values())) if row["exists"] else "missing: run `anyloop topics apply`"
        lags = [
            f"{row['lag'][name]}: {' '.join(map(str, parts.values()))}"
            for name, parts in row["lag_by_partition"].items()
        ]
        table.add_row(str(row["topic"]), total, " ".join(map(str, ends.values())), *lags)
    console.print(table)


def _behind(begins: Mapping[int, int], ends: Mapping[int, int], committed: Mapping[int, int]) -> dict[int, int]:
    """What retention has removed nobody is behind with."""
    return {part: max(0, end - max(committed.get(part, 0), begins.get(part, 0))) for part, end in ends.items()}


@app.command()
def apply(
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Of each topic but the checkpoints' (default: ANYLOOP_LOG_PARTITIONS, 4).")
    ] = None,
    replication: Annotated[
        int | None, typer.Option(min=1, help="Copies of each event (ANYLOOP_LOG_REPLICATION, the cluster's default).")
    ] = None,
    min_insync: Annotated[
        int | None, typer.Option(min=1, help="Copies before an append is acknowledged (ANYLOOP_LOG_MIN_INSYNC).")
    ] = None,
    retention_days: Annotated[
        float | None, typer.Option(help="Older events may go (ANYLOOP_LOG_RETENTION_DAYS; default: kept for ever).")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and change nothing.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Create the topics that are missing and set what differs. Safe to repeat.

    Exit code 0 when all is (or would be) as specified, 5 when something is refused, 3 when the log is away. Options
    hold for this call; put them into the environment for `anyloop up` and for the next call.
    """
    from anyloop.log.topics import refused, topic_specs

    given = {
        "log_partitions": partitions,
        "log_replication": replication,
        "log_min_insync": min_insync,
        "log_retention_days": retention_days,
    }
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    try:
        specs = topic_specs(settings)
    except ValueError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error
    with _opened(settings, create=not dry_run) as log:
        changes = log.plan_topics(specs)
        refusal = refused(changes)
        if not dry_run and refusal is None:
            changes = log.apply_topics(specs)
    if as_json:
        created = [change.topic for change in changes if change.action == "create"]
        print_json({"dry_run": dry_run, "created": created, "changes": [asdict(change) for change in changes]})
    else:
        _print(changes, dry_run=dry_run or refusal is not None)
    if refusal is not None:
        raise CommandError(f"nothing {'would be' if dry_run else 'was'} changed: {refusal}", ExitCode.REFUSED)


def _opened(settings: Settings, *, create: bool) -> AbstractContextManager["EventLog"]:
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.runfile import log_url
    from anyloop.log import open_log

    return (open_log if create else opened_to_look)(log_url(settings))


def _print(changes: Sequence["TopicChange"], *, dry_run: bool) -> None:
    if not changes:
        console.print("All topics are as specified.")
    words = _PLANNED if dry_run else _DONE
    for change in changes:
        console.print(f"{words[change.action]} {change.topic}: {change.detail}", highlight=False, soft_wrap=True)
