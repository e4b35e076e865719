"""`anyloop topics`: the explicit admin step that creates topics, and their state."""

from typing import Annotated, Any

import typer
from rich.table import Table

from anyloop.cli.exits import CommandError
from anyloop.cli.output import JsonFlag, console, print_json
from anyloop.config import Settings

app = typer.Typer(no_args_is_help=True, help="Topics of the event log: list, create.")


@app.command("list")
def list_topics(
    group: Annotated[list[str] | None, typer.Option(help="Also show the lag of this consumer group.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Every topic with its events, partition by partition, and the lag of consumer groups."""
    from anyloop.log import TOPICS, UnknownTopic, open_log

    rows: list[dict[str, Any]] = []
    with open_log(Settings().effective_log_url) as log:
        for spec in TOPICS:
            try:
                ends = log.end_offsets(spec.name)
            except UnknownTopic:
                rows.append({"topic": spec.name, "exists": False, "end_offsets": {}, "lag": {}})
                continue
            lag = {name: log.lag(name, [spec.name]) for name in group or []}
            rows.append({"topic": spec.name, "exists": True, "end_offsets": ends, "lag": lag})
    if as_json:
        print_json(rows)
        return
    table = Table("topic", "events", "by partition", *(f"lag of {name}" for name in group or []), box=None)
    for row in rows:
        ends = row["end_offsets"]
        total = str(sum(ends.values())) if row["exists"] else "missing: run `anyloop topics apply`"
        table.add_row(str(row["topic"]), total, " ".join(map(str, ends.values())), *map(str, row["lag"].values()))
    console.print(table)


@app.command()
def apply(as_json: JsonFlag = False) -> None:
    """Create the topics that are missing. Safe to repeat."""
    from anyloop.log import LogError, open_log

    settings = Settings()
    if not settings.log_url:
        settings.home.mkdir(parents=True, exist_ok=True)
    with open_log(settings.effective_log_url) as log:
        try:
            created = log.ensure_topics()
        except LogError as error:
            raise CommandError(str(error)) from error
    if as_json:
        print_json({"created": created})
    else:
        console.print("\n".join(f"created {name}" for name in created) or "All topics exist.", highlight=False)
