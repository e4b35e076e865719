"""What a running `anyloop up` tells the other commands: its process and its addresses, in `home/up.json`."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyloop.cli.exits import CommandError
from anyloop.cli.topology import Topology, local_broker_url
from anyloop.config import Settings

_NAME = "up.json"


@contextmanager
def running(settings: Settings, topology: Topology) -> Iterator[None]:
    """Holds the home folder for this process and publishes its addresses. Raises CommandError when another holds it."""
    home = settings.home.absolute()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "up.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CommandError(
                f"Another `anyloop up` runs on {home}: stop it, or choose another folder with --home"
            ) from error
        path = home / _NAME
        path.write_text(json.dumps(_describe(topology), indent=1))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def in_use(home: Path) -> bool:
    """Whether a running process holds the home folder."""
    try:
        with (home / "up.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def addresses(settings: Settings) -> dict[str, Any] | None:
    """What a live `anyloop up` of this home published; None when there is none."""
    path = settings.home / _NAME
    try:
        described: dict[str, Any] = json.loads(path.read_text())
        os.kill(described["pid"], 0)
    except (OSError, ValueError, KeyError):
        return None
    return described


def gateway_url(settings: Settings, given: str = "") -> str:
    """The gateway to talk to: the one given, else the one running here, else the one in the settings."""
    if given:
        return given.rstrip("/")
    described = addresses(settings)
    return str(described["gateway_url"]) if described else f"http://{settings.bind}:{settings.gateway_port}"


def setting(settings: Settings, name: str) -> str:
    """An address such as `policy_control_target`, moved by the port offset of a running `anyloop up`."""
    described = addresses(settings)
    environment = described["environment"] if described else {}
    return str(environment.get(f"ANYLOOP_{name.upper()}", getattr(settings, name)))


def log_url(settings: Settings) -> str:
    """The event log: the one set, else that of a running `anyloop up` (which may have brought a broker), else the
    broker of this home at its usual port, else the embedded log."""
    described = addresses(settings)
    published = described["environment"].get("ANYLOOP_LOG_URL", "") if described else ""
    if settings.log_url or published:
        return settings.log_url or str(published)
    return local_broker_url(0) if keeps_log_in_broker(settings) else settings.effective_log_url


def keeps_log_in_broker(settings: Settings) -> bool:
    """This home began with `--log kafka` (or `anyloop kafka`), and no embedded log is there."""
    return (settings.home / "kafka").exists() and not (settings.home / "log.db").exists()


def _describe(topology: Topology) -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "gateway_url": topology.gateway_url,
        "urls": dict(topology.urls),
        "environment": dict(topology.services[-1].env),
        "services": [
            {"name": spec.name, "address": spec.address, "ports": list(spec.ports)} for spec in topology.services
        ],
    }
