"""`anyloop up`: the whole loop on one machine."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

from anyloop.cli.exits import CommandError
from anyloop.cli.log_choice import LogKind, bring_broker, choose_log
from anyloop.cli.output import console
from anyloop.config import Settings

PortOffset = Annotated[int, typer.Option(help="Added to every port, to run beside something else.")]
Host = Annotated[
    Literal["triton", "inprocess"] | None,
    typer.Option(help="Where the models run (default: ANYLOOP_HOST, else triton)."),
]
Algorithm = Annotated[Literal["dpo", "ppo", "grpo"], typer.Option(help="How the trainer optimises the pairs.")]


def up(
    port_offset: PortOffset = 0,
    trainer: Annotated[bool, typer.Option("--trainer/--no-trainer", help="Run the trainer and the gate.")] = True,
    algorithm: Algorithm = "dpo",
    host: Host = None,
    log: LogKind = None,
    gate_suite: Annotated[
        str, typer.Option(help="MODULE:FUNCTION of the gate's evaluation suite.", envvar="ANYLOOP_GATE_SUITE")
    ] = "anyloop.world.suite:gate_suite",
    start_timeout: Annotated[float, typer.Option(help="Seconds until all must be ready.")] = 180.0,
) -> None:
    """Start every service, wait until all are ready, print the URLs, run until Ctrl-C.

    Logs go to HOME/logs. A service that dies ends the command with exit code 1, its name, and the end of its log.
    """
    from anyloop.cli.board import Board
    from anyloop.cli.runfile import running
    from anyloop.cli.supervisor import Supervisor, handled
    from anyloop.cli.topology import one_machine

    settings = local_settings(host)
    broker = choose_log(settings, log, port_offset)
    if broker:
        bring_broker()
    topology = one_machine(
        settings, port_offset=port_offset, trainer=trainer, algorithm=algorithm, gate_suite=gate_suite, broker=broker
    )
    logs = settings.home / "logs"
    with (
        running(settings, topology),
        handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
        Board(console) as board,
        Supervisor(
            topology.services,
            log_dir=logs,
            start_timeout_s=start_timeout,
            on_change=board.show,
            on_ready=preparing(settings),
        ) as supervisor,
    ):
        if not broker:
            prepare_home(settings)
        try:
            supervisor.start()
            print_urls(topology.urls, logs)
            supervisor.watch()
        except KeyboardInterrupt:
            console.print("Stopping; again to stop at once.")


def local_settings(host: str | None) -> Settings:
    """Settings with the model folder checked, for commands that start services."""
    settings = Settings(host=host) if host else Settings()  # type: ignore[arg-type]
    if not (settings.model_dir / "config.json").exists():
        raise CommandError(
            f"No checkpoint in {settings.model_dir}: set ANYLOOP_MODEL_DIR, or train the reference model with "
            "`make tiny-omni`"
        )
    return settings


def prepare_home(settings: Settings) -> None:
    """Creates the folder and the topics of the log. Topics exist by this step alone, never by a first append."""
    from anyloop.log import open_log, topic_specs

    settings.home.mkdir(parents=True, exist_ok=True)
    with open_log(settings.effective_log_url) as log:
        log.apply_topics(topic_specs(settings))


def preparing(settings: Settings) -> Callable[[str], None]:
    """For a supervisor: prepares the home when the broker among its services is ready, before any other starts."""
    from anyloop.cli.topology import KAFKA

    def on_ready(service: str) -> None:
        if service == KAFKA:
            prepare_home(settings)

    return on_ready


def print_urls(urls: Mapping[str, str], logs: Path) -> None:
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, url in urls.items():
        table.add_row(name, f"[link={url}]{url}[/link]" if url.startswith("http") else url)
    table.add_row("logs", str(logs.absolute()))
    console.print("\n[bold green]AnyLoop is up.[/] Stop with Ctrl-C.\n")
    console.print(table)
