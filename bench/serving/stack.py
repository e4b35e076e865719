"""AnyLoop as `anyloop up` starts it: Triton, the policy service, the gateway; ports out of others' way.

Left out is what a text answer never meets: decoders, critique, trainer and gate.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyloop.cli.exits import CommandError
from anyloop.cli.supervisor import Supervisor, refuse_taken_ports
from anyloop.cli.topology import ServiceSpec, Topology, one_machine
from anyloop.cli.up import prepare_home
from anyloop.config import Settings
from bench.serving.processes import START_SECONDS, ContenderFailed

_NEEDED = ("triton", "policy", "gateway")


@dataclass(frozen=True)
class Stack:
    """Addresses (host:port) of the three layers, and their processes by name."""

    triton: str
    policy: str
    gateway: str
    control: str  # of the policy service
    pids: dict[str, int]

    def job(
        self, kind: str, prompts: list[dict[str, Any]], streams: int, max_tokens: int, sampling: dict[str, Any]
    ) -> dict[str, Any]:
        """`kind` is "triton", "policy" or "sse"."""
        addresses = {"triton": self.triton, "policy": self.policy, "sse": self.gateway}
        body = {"model": "anyloop", "modalities": ["text"], "stream_options": {"include_usage": True}}
        return {
            "kind": kind,
            "address": addresses[kind],
            "streams": streams,
            "prompts": prompts,
            "max_tokens": max_tokens,
            "sampling": sampling,
            "body": body,
        }


@contextlib.contextmanager
def anyloop_stack(directory: Path, home: Path) -> Iterator[Stack]:
    """Raises ContenderFailed."""
    settings = Settings(_env_file=None, home=home, model_dir=directory, host="triton")  # type: ignore[call-arg]
    topology = _on_free_ports(settings)
    supervisor = Supervisor(topology.services, log_dir=home / "logs", start_timeout_s=START_SECONDS)
    try:
        with supervisor:
            prepare_home(settings)
            supervisor.start()
            pid = {service.spec.name: service.child.pid for service in supervisor.services if service.child}
            address = {service.spec.name: service.spec.address for service in supervisor.services}
            yield Stack(
                triton=address["triton"],
                policy=address["policy"],
                gateway=address["gateway"].removeprefix("http://"),
                control=topology.urls["control (policy)"],
                pids=pid,
            )
            supervisor.check()
    except CommandError as error:
        raise ContenderFailed(str(error)) from error


def _on_free_ports(settings: Settings) -> Topology:
    for _ in range(20):
        topology = one_machine(settings, port_offset=random.randrange(2000, 9000), trainer=False)
        services = tuple(_only_text(spec) for spec in topology.services if spec.name in _NEEDED)
        with contextlib.suppress(CommandError):
            refuse_taken_ports(services)
            return replace(topology, services=services)
    raise ContenderFailed("no free ports were found for the stack")


def _only_text(spec: ServiceSpec) -> ServiceSpec:
    argv = (*spec.argv, "--model=policy") if spec.name == "triton" else spec.argv
    after = tuple(name for name in spec.after if name in _NEEDED)
    return replace(spec, argv=argv, after=after, env={**spec.env, "HF_HUB_OFFLINE": "1"})
