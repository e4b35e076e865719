"""Which event log a command that starts services uses, and whether it brings a broker for it."""

from datetime import datetime
from typing import Annotated, Literal

import typer

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.output import errors
from anyloop.cli.runfile import keeps_log_in_broker
from anyloop.cli.topology import local_broker_url
from anyloop.config import Settings

LogKind = Annotated[
    Literal["sqlite", "kafka"] | None,
    typer.Option(
        "--log",
        help="kafka: the cluster of ANYLOOP_LOG_URL, or else a broker of its own, started first. "
        "Default: ANYLOOP_LOG_URL, else sqlite.",
    ),
]


def choose_log(settings: Settings, kind: str | None, port_offset: int) -> bool:
    """Sets `settings.log_url`; True when a broker of this machine's own must run behind it.

    Raises CommandError where the choice contradicts the settings, or the home folder: offsets of one log mean nothing
    in another, so that a home keeps the log it began with.
    """
    if settings.log_url:
        scheme = settings.log_url.partition(":")[0]
        if kind is not None and kind != scheme:
            raise CommandError(
                f"--log {kind}, but ANYLOOP_LOG_URL={settings.log_url}: unset one of them", ExitCode.USAGE
            )
        return False
    if kind == "kafka":
        _refuse_security()
        embedded = settings.home / "log.db"
        if embedded.exists():
            raise CommandError(
                f"The log of this home is {embedded}: go on without --log kafka, or choose another folder with --home",
                ExitCode.USAGE,
            )
        settings.log_url = local_broker_url(port_offset)
        return True
    if kind is None and keeps_log_in_broker(settings):
        raise CommandError(
            f"The log of this home is the broker in {settings.home / 'kafka'}: go on with --log kafka, or with "
            "ANYLOOP_LOG_URL where that runs by itself; --log sqlite begins a new one",
            ExitCode.USAGE,
        )
    return False


def bring_broker() -> None:
    """Downloads the broker where it is missing, with a word on the screen: minutes that a service's start does not
    have. Raises CommandError without Java or Maven."""
    from anyloop.cli.kafka.artifacts import jars, java

    java()
    with errors.status("Bringing the Kafka broker (once, some minutes)"):
        jars()


def separate_log(settings: Settings) -> None:
    """On a cluster that is there already: a prefix of its own, so that a demo neither reads nor leaves events among
    those of others. Topics of that prefix stay."""
    if settings.log_url.startswith("kafka:"):
        url, _, prefix = settings.log_url.removeprefix("kafka://").partition("/")
        settings.log_url = f"kafka://{url}/{prefix}demo-{datetime.now():%Y%m%d-%H%M%S}."


def _refuse_security() -> None:
    from anyloop.log.kafka_settings import KafkaSettings

    protocol = KafkaSettings().security_protocol
    if protocol != "PLAINTEXT":
        raise CommandError(
            f"--log kafka starts a broker without encryption, but ANYLOOP_KAFKA_SECURITY_PROTOCOL={protocol}: unset "
            "it, or set ANYLOOP_LOG_URL to your cluster",
            ExitCode.USAGE,
        )
