"""Rollouts where every port asks for a certificate, and control ports for that of the controller."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from anyloop.registry import checkpoint_events
from anyloop.registry.announce import REJECTED
from bench.rollout.controller import FAST, Controller, service_account
from bench.rollout.fleet import Fleet
from bench.rollout.kubelet import Kubelet
from bench.rollout.rollouts import Rollouts
from bench.rollout.versions import LINEAGE
from tests.k8s.controlplane.cluster import ControlPlane
from tests.models.random_omni import build_random_omni
from tests.transport.authority import Authority

pytestmark = pytest.mark.e2e

POLICY, CONTROLLER = "policy.anyloop.svc", "controller.anyloop.svc"


def variables(folder: Path) -> dict[str, str]:
    return {
        "ANYLOOP_TLS_CERT": str(folder / "tls.crt"),
        "ANYLOOP_TLS_KEY": str(folder / "tls.key"),
        "ANYLOOP_TLS_CA": str(folder / "ca.crt"),
        "ANYLOOP_TLS_SERVER_NAME": POLICY,  # pods are reached by their addresses, which no certificate names
    }


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("tls")
    served = authority.issue(folder / "policy", POLICY)
    asking = authority.issue(folder / "test", "test.anyloop.svc")
    certificates = {
        "tls_cert": asking / "tls.crt",
        "tls_key": asking / "tls.key",
        "tls_ca": asking / "ca.crt",
        "tls_server_name": POLICY,
    }
    environment = {**variables(served), "ANYLOOP_CONTROL_PEERS": CONTROLLER}
    with Fleet(folder, build_random_omni(folder / "model"), 1, environment, certificates) as fleet:
        yield fleet


def test_only_the_controller_that_the_replicas_know_changes_their_weights(
    fleet: Fleet, control_plane: ControlPlane, authority: Authority, tmp_path: Path
) -> None:
    stable = fleet.promoted
    rollouts = Rollouts(control_plane)
    account = service_account(rollouts)
    log_url = fleet.settings.effective_log_url
    with contextlib.ExitStack() as exits:
        fleet.register(exits.enter_context(Kubelet(control_plane, rollouts.namespace)))
        rollouts.create("policy", progressDeadlineSeconds=5)
        stranger = variables(authority.issue(tmp_path / "stranger", "gateway.anyloop.svc"))
        with Controller(tmp_path, account, rollouts.namespace, log_url, "stranger", pace={**FAST, **stranger}):
            refused = fleet.versions.approve(fleet.versions.sound())
            status = rollouts.until("policy", lambda status: status.get("history"))
        assert status["history"][0] == status["history"][0] | {"version": refused, "outcome": "RolledBack", "peak": 0}
        assert "PERMISSION_DENIED" in status["history"][0]["reason"]
        assert fleet.serving() == [stable]
        known = variables(authority.issue(tmp_path / "known", CONTROLLER))
        with Controller(tmp_path, account, rollouts.namespace, log_url, "known", pace={**FAST, **known}):
            target = fleet.versions.approve(fleet.versions.sound())
            rollouts.until_phase("policy", "Completed", version=target)
    assert fleet.serving() == [target]
    (rejected,) = [event for _, event in checkpoint_events(fleet.log, LINEAGE) if event.state == REJECTED]
    assert rejected.version == refused
