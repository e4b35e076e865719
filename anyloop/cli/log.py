"""`anyloop log`: what the topics hold, and events as they arrive."""

import time
from typing import Annotated

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag
from anyloop.config import Settings

app = typer.Typer(no_args_is_help=True, help="The event log: read, tail.")
_POLL_S = 0.5


@app.command()
def read(
    topic: Annotated[
        str, typer.Argument(help="responses, feedback, critiques, checkpoints, audit, NAME.dlq, or a full name.")
    ],
    since: Annotated[str, typer.Option(help="15m, 2h, 3d, or an ISO 8601 time.")] = "",
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    offset: Annotated[int | None, typer.Option(help="From this offset of --partition.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many records.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the records of a topic, from any point, without moving a consumer group (--json: one document per line)."""
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.records import point_in_time, print_record, topic_name
    from anyloop.cli.runfile import log_url
    from anyloop.log import UnknownTopic

    start = point_in_time(since) if since else None
    with opened_to_look(log_url(Settings())) as log:
        try:
            for record in log.read(topic_name(topic), partition=partition, offset=offset, since=start, limit=limit):
                print_record(record, as_json=as_json)
        except UnknownTopic as error:
            raise CommandError(f"{error}; `anyloop topics list` shows what exists", ExitCode.NOT_FOUND) from error
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error


@app.command()
def tail(
    topic: Annotated[
        list[str] | None,
        typer.Argument(help="responses, feedback, critiques, checkpoints, audit; default: the first four."),
    ] = None,
    last: Annotated[int, typer.Option("-n", "--last", min=0, help="Begin with so many old records.")] = 10,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Go on as records arrive.")] = True,
    as_json: JsonFlag = False,
) -> None:
    """Print the newest records, then new ones as they arrive, until Ctrl-C (with --json one document per line)."""
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.records import FLOWS, print_record, topic_name
    from anyloop.cli.runfile import log_url
    from anyloop.log import UnknownTopic

    names = [topic_name(name) for name in topic] if topic else list(FLOWS.values())
    with opened_to_look(log_url(Settings())) as log:
        try:
            ends = {name: log.end_offsets(name) for name in names}
        except UnknownTopic as error:
            raise CommandError(f"{error}; `anyloop topics list` shows what exists", ExitCode.NOT_FOUND) from error
        old = [
            record
            for name, partitions in ends.items()
            for part, end in partitions.items()
            for record in log.read(name, partition=part, offset=max(0, end - last))
            if record.offset < end
        ]
        for record in sorted(old, key=lambda record: record.time)[len(old) - min(last, len(old)) :]:
            print_record(record, as_json=as_json)
        while follow:
            time.sleep(_POLL_S)
            for name, partitions in ends.items():
                for part, end in partitions.items():
                    for record in log.read(name, partition=part, offset=end):
                        print_record(record, as_json=as_json)
                        partitions[part] = record.offset + 1
