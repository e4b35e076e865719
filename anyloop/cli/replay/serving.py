"""Services of a replay: the ordinary ones on free ports, at low priority, without a gateway, on a home of their own."""

import random
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import refuse_taken_ports
from anyloop.cli.topology import ServiceSpec, Topology, one_machine
from anyloop.config import Settings

_NICE = ("nice", "-n", "10")  # the live loop comes first
_HIGHEST_OFFSET = 15_000
_ATTEMPTS = 50


def private_services(
    private: Settings, names: Collection[str], *, algorithm: str = "dpo", gate_suite: str = ""
) -> Topology:
    """The services in `names` of one machine, on ports that nothing uses now. Raises CommandError without such."""
    offsets = random.Random().sample(range(200, _HIGHEST_OFFSET, 20), _ATTEMPTS)
    for offset in offsets:
        whole = one_machine(private, port_offset=offset, algorithm=algorithm, gate_suite=gate_suite)
        services = tuple(_private(spec, private, names) for spec in whole.services if spec.name in names)
        try:
            refuse_taken_ports(services)
        except CommandError:
            continue
        return replace(whole, services=services)
    raise CommandError(f"no free ports for the replay's services after {_ATTEMPTS} attempts: stop something, try again")


def program(module: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a module that runs beside the services, at their priority."""
    return (*_NICE, sys.executable, "-m", module, *arguments)


def environment(private: Settings) -> dict[str, str]:
    """What keeps a process of the replay to its own home, whatever the live loop's environment says."""
    home: Path = private.home.absolute()
    return {
        "ANYLOOP_HOME": str(home),
        "ANYLOOP_LOG_URL": private.effective_log_url,
        "ANYLOOP_MEDIA_URL": private.effective_media_url,
        "ANYLOOP_REGISTRY_DIR": str(private.effective_registry_dir),
        "ANYLOOP_BIND": private.bind,
    }


def _private(spec: ServiceSpec, private: Settings, names: Collection[str]) -> ServiceSpec:
    after = tuple(name for name in spec.after if name in names)
    if spec.name == "gate":
        after = tuple(name for name in ("policy", "critique") if name in names)
    return replace(spec, argv=(*_NICE, *spec.argv), after=after, env={**spec.env, **environment(private)})
