"""Records of the log as a person or a machine reads them; shared by `log read` and `log tail`."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import message_dict
from anyloop.log import AUDIT, CHECKPOINTS, CRITIQUES, FEEDBACK, RESPONSES, PoisonEvent, Record

FLOWS = {"responses": RESPONSES, "feedback": FEEDBACK, "critiques": CRITIQUES, "checkpoints": CHECKPOINTS}
SHORT_NAMES = {**FLOWS, "audit": AUDIT}
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_BULKY = ("prompt_token_ids", "output_token_ids", "output_logprobs", "refined_token_ids")


def topic_name(name: str) -> str:
    """`responses` for `anyloop.responses.v1`, `responses.dlq` for its dead letters; other names as they are."""
    short, dead, _ = name.partition(".dlq")
    return SHORT_NAMES[short] + dead if short in SHORT_NAMES else name


def point_in_time(text: str) -> datetime:
    """`15m`, `2h`, `3d` ago, or an ISO 8601 time (UTC where it names no zone)."""
    try:
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdigit():
            return datetime.now(UTC) - timedelta(**{_UNITS[text[-1]]: float(text[:-1])})
        time = datetime.fromisoformat(text)
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:  # not to be read, or before the year 1
        raise CommandError(
            f"{text!r} is no point in time: use 15m, 2h, 3d or 2026-01-31T12:00:00Z", ExitCode.USAGE
        ) from error


def record_dict(record: Record, *, full: bool = True) -> dict[str, Any]:
    """Position, CloudEvents attributes and the message; token lists are counted rather than listed unless `full`."""
    try:
        message = message_dict(record.event.unwrap())
    except PoisonEvent as error:
        message = {"unreadable": str(error), "bytes": len(record.event.data)}
    if not full:
        message = {name: f"{len(value)} values" if name in _BULKY else value for name, value in message.items()}
    return {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "time": record.time.isoformat(),
        "key": record.event.key,
        "event": record.event.attributes(),
        "message": message,
    }


def print_record(record: Record, *, as_json: bool) -> None:
    """One line: JSON with everything, or position, time and the message without its token lists."""
    if as_json:
        typer.echo(json.dumps(record_dict(record), ensure_ascii=False))
        return
    shown = record_dict(record, full=False)
    message = json.dumps(shown["message"], ensure_ascii=False)
    typer.echo(f"{record.time:%H:%M:%S} {record.topic}[{record.partition}]@{record.offset} {message}")
