"""`anyloop replay`: what a topic holds, from any point, without moving a consumer group."""

from typing import Annotated

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag
from anyloop.config import Settings

Topic = Annotated[str, typer.Argument(help="responses, feedback, critiques, checkpoints, NAME.dlq, or a full name.")]


def replay(
    topic: Topic,
    since: Annotated[str, typer.Option(help="15m, 2h, 3d, or an ISO 8601 time.")] = "",
    partition: Annotated[int | None, typer.Option(help="Only this partition.")] = None,
    offset: Annotated[int | None, typer.Option(help="From this offset of --partition.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many records.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the records of a topic (with --json one document per line)."""
    from anyloop.cli.records import point_in_time, print_record, topic_name
    from anyloop.log import UnknownTopic, open_log

    start = point_in_time(since) if since else None
    with open_log(Settings().effective_log_url) as log:
        try:
            for record in log.read(topic_name(topic), partition=partition, offset=offset, since=start, limit=limit):
                print_record(record, as_json=as_json)
        except UnknownTopic as error:
            raise CommandError(f"{error}; `anyloop topics list` shows what exists", ExitCode.NOT_FOUND) from error
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
