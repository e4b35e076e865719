"""One test's cluster: its namespace, the fleet's pods in it, and controllers."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from anyloop.registry import announce, checkpoint_events
from anyloop.registry.announce import APPROVED, PROMOTED, REJECTED
from bench.rollout.controller import Controller
from bench.rollout.fleet import Fleet
from bench.rollout.kubelet import Kubelet
from bench.rollout.rollouts import Rollouts
from bench.rollout.versions import LINEAGE
from protos.anyloop.v1 import control_pb2, control_pb2_grpc, events_pb2

ADVANCE = "anyloop.dev/advance"


@dataclass
class Stage:
    fleet: Fleet
    rollouts: Rollouts
    kubelet: Kubelet
    folder: Path
    exits: contextlib.ExitStack
    kubeconfig: Path
    began: int = field(default=0)  # announcements in the log before the test

    def controller(self, identity: str = "a") -> Controller:
        controller = Controller(
            self.folder,
            self.kubeconfig,
            self.rollouts.namespace,
            self.fleet.settings.effective_log_url,
            identity,
        )
        return self.exits.enter_context(controller)

    def approve_sound(self) -> str:
        return self.fleet.versions.approve(self.fleet.versions.sound())

    def announcements(self, state: int) -> list[events_pb2.CheckpointEvent]:
        """Of this test."""
        events = [event for _, event in checkpoint_events(self.fleet.log, LINEAGE)]
        return [event for event in events[self.began :] if event.state == state]

    @property
    def promoted(self) -> list[str]:
        return [event.version for event in self.announcements(PROMOTED)]

    @property
    def rejected(self) -> list[str]:
        return [event.version for event in self.announcements(REJECTED)]

    def advance(self, name: str) -> None:
        """As `anyloop rollouts advance` does it."""
        run = self.rollouts.status(name)["run"]
        self.rollouts.annotate(name, {ADVANCE: f"{run['id']}/{run['step']}"})

    def swaps(self) -> list[float]:
        """Changes of weights that each replica has made since it began."""
        return [
            self.fleet.metric(number, "anyloop_swap_stall_seconds_count") for number in range(len(self.fleet.replicas))
        ]

    def until(self, holds: Callable[[], Any], seconds: float = 30.0, what: str = "") -> None:
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what or holds} did not come true within {seconds:g} s")
            time.sleep(0.1)


def settle(fleet: Fleet) -> None:
    """What a test left undecided is rejected, and every replica serves what is promoted."""
    newest: dict[str, int] = {}
    for _, event in checkpoint_events(fleet.log, LINEAGE):
        newest[event.version] = event.state
    for version in [version for version, state in newest.items() if state == APPROVED]:
        announce(fleet.log, LINEAGE, version, REJECTED, reason="the test has ended", decided_by="test")
    for number, serving in enumerate(fleet.serving()):
        if serving != fleet.promoted:
            address = f"127.0.0.1:{fleet.replicas[number].ports['control']}"
            with grpc.insecure_channel(address) as channel:
                stub = control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]
                stub.ActivateWeights(control_pb2.ActivateWeightsRequest(version=fleet.promoted), timeout=30)
