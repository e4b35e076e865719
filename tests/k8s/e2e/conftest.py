"""Three real policy services, registered as pods of a real API server, and controllers as processes beside them.

The fleet starts once for a process of the run, as it takes a quarter of a minute; a namespace, a kubelet and a load are
each test's own. Everything shares one log: a test begins on whatever the test before has promoted.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.registry import checkpoint_events
from bench.rollout.controller import service_account
from bench.rollout.fleet import Fleet
from bench.rollout.kubelet import Kubelet
from bench.rollout.rollouts import Rollouts
from bench.rollout.versions import LINEAGE
from tests.k8s.controlplane.cluster import ControlPlane
from tests.k8s.e2e.stage import Stage, settle
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with Fleet(folder, build_random_omni(folder / "model"), 3) as fleet:
        yield fleet


@pytest.fixture
def stage(fleet: Fleet, control_plane: ControlPlane, tmp_path: Path) -> Iterator[Stage]:
    settle(fleet)
    rollouts = Rollouts(control_plane)
    with contextlib.ExitStack() as exits, Kubelet(control_plane, rollouts.namespace) as kubelet:
        fleet.register(kubelet)
        began = sum(1 for _ in checkpoint_events(fleet.log, LINEAGE))
        kubeconfig = service_account(rollouts)
        stage = Stage(fleet, rollouts, kubelet, tmp_path, exits, kubeconfig, began)
        stage.until(lambda: len(kubelet.ready()) == len(fleet.replicas), what="every pod is ready")
        yield stage
