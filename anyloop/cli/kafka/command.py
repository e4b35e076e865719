"""`anyloop kafka`: a real broker on this machine, in the foreground."""

import signal
import socket
import time
from pathlib import Path
from typing import Annotated

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import console
from anyloop.config import Settings

DEFAULT_PORT = 9092
_WATCH_S = 0.2


def kafka(
    folder: Annotated[
        Path | None, typer.Option(help="Where the broker keeps its data and its log (default: HOME/kafka).")
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="The port of 127.0.0.1 that it listens on.")
    ] = DEFAULT_PORT,
    heap_mb: Annotated[int, typer.Option(min=128, help="Largest Java heap.")] = 256,
) -> None:
    """Run Apache Kafka on this machine until Ctrl-C, and print the ANYLOOP_LOG_URL to set.

    One node in KRaft mode without authentication, for development: it listens on 127.0.0.1 alone. The first run brings
    the jars by Maven into ~/.cache/anyloop. The data stay in the folder; a second run goes on with them.
    """
    from anyloop.cli.kafka.artifacts import broker_version
    from anyloop.cli.kafka.broker import LocalBroker
    from anyloop.cli.log_choice import bring_broker
    from anyloop.cli.supervisor import handled

    place = (folder or Settings().home / "kafka").absolute()
    _refuse_taken(port)
    with handled((signal.SIGINT, signal.SIGTERM, signal.SIGHUP)):
        try:
            bring_broker()
            with LocalBroker(place, port=port, heap_mb=heap_mb) as broker:
                console.print(
                    f"Apache Kafka {broker_version()} listens on {broker.address}; its data are in {place}",
                    soft_wrap=True,
                )
                console.print(f"[bold]export ANYLOOP_LOG_URL=kafka://{broker.address}[/]", highlight=False)
                console.print("Then `anyloop topics apply`, `anyloop up`, ... Stop with Ctrl-C.", highlight=False)
                while broker.pid is not None:
                    time.sleep(_WATCH_S)
                tail = broker.log_file.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise CommandError(f"the broker ended by itself. The end of {broker.log_file}:\n{tail}")
        except KeyboardInterrupt:
            console.print("The broker has stopped; its data stay.")


def _refuse_taken(port: int) -> None:
    """A broker of another run would answer in place of the new one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise CommandError(
                f"port {port} is taken: stop what listens there (another broker?) or choose another --port",
                ExitCode.USAGE,
            ) from error
