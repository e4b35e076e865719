"""`anyloop audit`: who promoted, rolled back, rejected, and changed the keys, when and why."""

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import JsonFlag, errors
from anyloop.config import Settings

if TYPE_CHECKING:
    from anyloop.log import Record
    from protos.anyloop.v1 import events_pb2

_POLL_S = 0.5
_HASH_CHARS = 12  # of a digest, for people


def audit(
    since: Annotated[str, typer.Option(help="15m, 2h, 3d, or an ISO 8601 time; default: from the beginning.")] = "",
    action: Annotated[
        list[str] | None,
        typer.Option(
            help="Only these: promote, rollback, reject, approve, rollout, keys.reload; rollout means all of it."
        ),
    ] = None,
    subject: Annotated[str, typer.Option(help="Only what was done to this version, rollout or file.")] = "",
    actor: Annotated[str, typer.Option(help="Only what this one did; anna finds anna@any-host.")] = "",
    limit: Annotated[int | None, typer.Option("-n", "--last", min=1, help="Only the newest so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as entries arrive, until Ctrl-C.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """The audit trail: who changed what serves or who may call, oldest first (--json: one document per line).

    The same entries stand in the log of the process that acted. `anyloop checkpoints list` shows where that has led.
    """
    from anyloop.audit import audit_events
    from anyloop.cli.looking import opened_to_look
    from anyloop.cli.records import point_in_time
    from anyloop.cli.runfile import log_url
    from anyloop.log import AUDIT, UnknownTopic

    start = point_in_time(since) if since else None
    with opened_to_look(log_url(Settings())) as log:
        try:
            end = log.end_offsets(AUDIT)[0]
            seen: dict[str, str] = {}  # what was said twice is shown once, also while following
            entries = (_document(*one) for one in audit_events(log, since=start, end=end, seen=seen))
            found = [entry for entry in entries if _wanted(entry, action, subject, actor)]
            for entry in found[-limit:] if limit else found:
                _print(entry, as_json)
            if not found and not follow and not as_json:
                errors.print("No such entry." if end else "Nothing was audited so far.", highlight=False)
            while follow:
                time.sleep(_POLL_S)
                for record, event in audit_events(log, offset=end, seen=seen):
                    end, entry = record.offset + 1, _document(record, event)
                    if _wanted(entry, action, subject, actor):
                        _print(entry, as_json)
        except UnknownTopic as error:
            raise CommandError(
                f"{error}: nothing was audited so far; make the topic with `anyloop topics apply`", ExitCode.NOT_FOUND
            ) from error


def _document(record: "Record", event: "events_pb2.AuditEvent") -> dict[str, Any]:
    return {
        "offset": record.offset,
        "time": record.time.astimezone(UTC).isoformat(),
        "id": event.audit_id,
        "actor": event.actor,
        "host": event.host,
        "action": event.action,
        "subject": event.subject,
        "outcome": event.outcome,
        "reason": event.reason,
        "details": json.loads(event.details_json or "{}"),
    }


def _wanted(entry: dict[str, Any], actions: list[str] | None, subject: str, actor: str) -> bool:
    acts = not actions or any(entry["action"] == one or entry["action"].startswith(f"{one}.") for one in actions)
    acted = not actor or entry["actor"] == actor or entry["actor"].partition("@")[0] == actor
    return acts and acted and (not subject or entry["subject"] == subject)


def _print(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(entry, ensure_ascii=False))
        return
    moment = datetime.fromisoformat(entry["time"])
    who = entry["actor"] if "@" in entry["actor"] else f"{entry['actor']} on {entry['host']}"
    outcome = "" if entry["outcome"] == "done" else f" [{entry['outcome']}]"
    reason = f": {entry['reason']}" if entry["reason"] else ""
    digest = str(entry["details"].get("digest", ""))[:_HASH_CHARS]
    weights = f" ({digest})" if digest else ""
    typer.echo(f"{moment:%Y-%m-%d %H:%M:%S}Z {who}: {entry['action']} {entry['subject']}{weights}{outcome}{reason}")
