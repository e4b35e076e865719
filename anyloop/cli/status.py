"""`anyloop status`: is everything up, what serves, how far has the trainer come."""

from typing import Annotated, Any

import typer
from rich.table import Table

from anyloop.cli.exits import ExitCode
from anyloop.cli.output import JsonFlag, console, message_dict, print_json
from anyloop.config import Settings


def status(
    url: Annotated[str, typer.Option("--url", help="The gateway (default: the one `anyloop up` runs here).")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Health of the gateway and the replicas, versions in service, events in the log, the trainer's last round.

    Exit code 3 when the gateway is not ready.
    """
    from anyloop.cli.journal import Journal
    from anyloop.cli.replicas import replica_status
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import addresses, gateway_url

    settings = Settings()
    gateway = gateway_url(settings, url)
    with GatewayClient(gateway) as client:
        ready = client.ready()
    replicas = {lineage: replica_status(settings, lineage) for lineage in ("policy", "critique")}
    described = addresses(settings)
    report: dict[str, Any] = {
        "gateway": {"url": gateway, "ready": ready},
        "up": {"pid": described["pid"], "services": described["services"]} if described else None,
        "replicas": {name: message_dict(reply) if reply else None for name, reply in replicas.items()},
        "log": _log_counts(settings),
        "last_round": next(reversed(Journal(settings.home / "trainer" / "rounds.jsonl").rounds()), None),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not ready:
        raise typer.Exit(ExitCode.UNREACHABLE)


def _log_counts(settings: Settings) -> dict[str, int] | None:
    """Events per topic; None when the log does not exist. A status command creates nothing."""
    from anyloop.log import TOPICS, UnknownTopic, open_log

    if not settings.log_url and not (settings.home / "log.db").exists():
        return None
    counts: dict[str, int] = {}
    with open_log(settings.effective_log_url) as log:
        for spec in TOPICS:
            try:
                counts[spec.name] = sum(log.end_offsets(spec.name).values())
            except UnknownTopic:
                continue
    return counts


def _print(report: dict[str, Any]) -> None:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    gateway = report["gateway"]
    table.add_row("gateway", "[green]ready[/]" if gateway["ready"] else "[red]not ready[/]", gateway["url"])
    for name, replica in report["replicas"].items():
        if replica is None:
            table.add_row(name, "[red]no answer[/]", "")
            continue
        running, waiting = replica.get("requests_running", 0), replica.get("requests_waiting", 0)
        state = "[yellow]draining[/]" if replica.get("draining") else "[green]serving[/]"
        cache = int(replica.get("kv_cache_bytes", 0)) / 2**20
        what = f"{replica.get('serving_version', '')}  {running} running, {waiting} waiting, {cache:.0f} MiB KV cache"
        table.add_row(name, state, what)
    for topic, count in (report["log"] or {}).items():
        if count or not topic.endswith(".dlq"):
            table.add_row(topic, str(count), "events")
    if last := report["last_round"]:
        took = sum((last.get("seconds") or {}).values())
        table.add_row("last round", str(last.get("outcome", "")), f"round {last.get('round')}, {took:.0f} s")
    console.print(table)
