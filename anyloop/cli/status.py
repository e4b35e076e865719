"""`anyloop status`: is everything up, what serves, how far is the trainer behind, how far has it come."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from anyloop.cli.exits import ExitCode
from anyloop.cli.output import JsonFlag, console, message_dict, print_json
from anyloop.config import Settings


def status(
    url: Annotated[str, typer.Option("--url", help="The gateway (default: the one `anyloop up` runs here).")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Health of the gateway and the replicas, versions in service, events in the log and the trainer's lag, what waits
    in the outboxes, the trainer's last round.

    Exit code 3 when the gateway is not ready. With the log away the rest is shown all the same.
    """
    from anyloop.cli.journal import Journal
    from anyloop.cli.log_state import log_state, outboxes
    from anyloop.cli.replicas import replica_status
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import addresses, gateway_url, log_url

    settings = Settings()
    gateway = gateway_url(settings, url)

    def is_ready() -> bool:
        with GatewayClient(gateway) as client:
            return client.ready()

    with ThreadPoolExecutor(4) as asking:  # whoever is away costs its own time limit, not the sum of all
        ready = asking.submit(is_ready)
        replicas = {name: asking.submit(replica_status, settings, name) for name in ("policy", "critique")}
        log = asking.submit(log_state, log_url(settings))
    described = addresses(settings)
    report: dict[str, Any] = {
        "gateway": {"url": gateway, "ready": ready.result()},
        "up": {"pid": described["pid"], "services": described["services"]} if described else None,
        "replicas": {
            name: message_dict(reply) if (reply := asked.result()) else None for name, asked in replicas.items()
        },
        "log": asdict(log.result()),
        "outbox_bytes": outboxes(settings.home),
        "last_round": next(reversed(Journal(settings.home / "trainer" / "rounds.jsonl").rounds()), None),
    }
    if as_json:
        print_json(report)
    else:
        _print(report)
    if not report["gateway"]["ready"]:
        raise typer.Exit(ExitCode.UNREACHABLE)


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
    _add_log(table, report["log"])
    for name, waiting in report["outbox_bytes"].items():
        if waiting:
            table.add_row(f"outbox of {name}", f"[yellow]{waiting}[/]", "bytes on disk that the log does not have yet")
    if last := report["last_round"]:
        took = sum((last.get("seconds") or {}).values())
        table.add_row("last round", str(last.get("outcome", "")), f"round {last.get('round')}, {took:.0f} s")
    console.print(table)


def _add_log(table: Table, log: dict[str, Any]) -> None:
    if log["error"]:
        table.add_row("log", "[red]no answer[/]", f"{escape(log['error'])}")
        return
    table.add_row("log", "[green]answers[/]", log["url"])
    for topic, count in log["events"].items():
        lag = log["lag"].get(topic)
        behind = "" if lag is None else "; the trainer has read all" if not lag else f"; the trainer is {lag} behind"
        table.add_row(topic, str(count), f"events{behind}")
    for topic, count in log["dead_letters"].items():
        if count:
            table.add_row(topic, f"[red]{count}[/]", "dead letters: `anyloop replay --dead-letters --dry-run`")
