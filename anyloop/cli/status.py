"""`anyloop status`: is everything up, what serves where, how far is the trainer behind, what waits for whom."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Annotated, Any

import typer

from anyloop.cli.checkpoint_state import Remembered
from anyloop.cli.exits import ExitCode
from anyloop.cli.output import JsonFlag, console, message_dict, print_json
from anyloop.config import Settings


def status(
    url: Annotated[str, typer.Option("--url", help="The gateway (default: the one `anyloop up` runs here).")] = "",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on until Ctrl-C.")] = False,
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks with --watch.")] = 2.0,
    as_json: JsonFlag = False,
) -> None:
    """The whole loop on one screen: gateway, replicas with the weights they serve, decoders, the log and the trainer's
    lag, what waits in the outboxes, the trainer's phase, the gate's last decision, a rollout in progress.

    Exit code 3 when the gateway is not ready. Whatever is away is said to be, and the rest is shown all the same. With
    --watch and --json: one document per line.
    """
    from anyloop.cli.status_screen import screen

    settings = Settings()
    if not watch:
        report = look(settings, url)
        if as_json:
            print_json(report)
        else:
            console.print(screen(report, time.time()))
        if not report["gateway"]["ready"]:
            raise typer.Exit(ExitCode.UNREACHABLE)
        return
    try:
        if as_json:
            remembered = Remembered()
            while True:
                typer.echo(json.dumps(look(settings, url, remembered), ensure_ascii=False))
                time.sleep(interval)
        _watch(settings, url, interval)
    except KeyboardInterrupt:
        return


def _watch(settings: Settings, url: str, interval: float) -> None:
    from rich.live import Live

    from anyloop.cli.status_screen import screen

    remembered = Remembered()
    with Live(screen(look(settings, url, remembered), time.time()), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            live.update(screen(look(settings, url, remembered), time.time()), refresh=True)


def look(settings: Settings, url: str = "", remembered: Remembered | None = None) -> dict[str, Any]:
    """Everything that can be learned now; `remembered` from the looks before. Raises CommandError on certificates that
    cannot be used."""
    from anyloop.cli.journal import Journal
    from anyloop.cli.log_state import log_state, outboxes
    from anyloop.cli.probes import GrpcHealth
    from anyloop.cli.replicas import fleet, replica_row
    from anyloop.cli.rest import GatewayClient
    from anyloop.cli.runfile import addresses, gateway_url, log_url, setting

    gateway = gateway_url(settings, url)

    def is_ready() -> bool:
        with GatewayClient(gateway) as client:
            return client.ready()

    with ThreadPoolExecutor(5) as asking:  # whoever is away costs its own time limit, not the sum of all
        ready = asking.submit(is_ready)
        asked = {name: asking.submit(fleet, settings, name) for name in ("policy", "critique")}
        decoders = asking.submit(GrpcHealth(setting(settings, "decoder_target"), settings).ready)
        log = asking.submit(log_state, log_url(settings), remembered)
    described = addresses(settings)
    fleets = {name: one.result() for name, one in asked.items()}
    journal = Journal(settings.home / "trainer" / "rounds.jsonl")
    rounds, under_way = journal.rounds(), journal.under_way()
    return {
        "gateway": {"url": gateway, "ready": ready.result()},
        "up": {"pid": described["pid"], "services": described["services"]} if described else None,
        "replicas": {
            name: next((message_dict(status) for _, status in found if status is not None), None)
            for name, found in fleets.items()
        },
        "fleets": {name: [replica_row(*one) for one in found] for name, found in fleets.items()},
        "decoders": {"address": setting(settings, "decoder_target"), "serving": decoders.result()},
        "log": asdict(log.result()),
        "outbox_bytes": outboxes(settings.home),
        "last_round": rounds[-1] if rounds else None,
        "trainer": {
            "rounds": len(rounds),
            "under_way": {"round": under_way[0], "ended": under_way[1]} if under_way else None,
            "failure": journal.trouble(),
            "expected": described is not None and any(one["name"] == "trainer" for one in described["services"]),
        },
    }
