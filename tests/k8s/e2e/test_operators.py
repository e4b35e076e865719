"""What an operator does to a rollout: at the command line, and by changing the fleet under it."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from anyloop.audit import audit_events, operator
from anyloop.cli.app import app
from anyloop.cli.exits import ExitCode
from bench.rollout.load import Load
from tests.k8s.e2e.stage import Stage

pytestmark = pytest.mark.e2e

MANUAL_CANARY = {"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]}


def anyloop(stage: Stage, *arguments: str, code: int = 0) -> str:
    kubeconfig = str(stage.rollouts.plane.kubeconfig)
    where = ["--kubeconfig", kubeconfig, "--namespace", stage.rollouts.namespace]
    result = CliRunner().invoke(app, ["rollouts", *arguments, *where])
    assert result.exit_code == code, result.output
    return result.output


def test_from_the_command_line_a_rollout_is_aborted_tried_again_and_advanced_and_the_trail_says_by_whom(
    stage: Stage,
) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    assert target in anyloop(stage, "status")
    anyloop(stage, "pause")
    stage.rollouts.until_phase("policy", "Paused")
    assert "`anyloop rollouts resume` first" in anyloop(stage, "advance", code=ExitCode.REFUSED)
    anyloop(stage, "resume")
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    anyloop(stage, "abort")
    status = stage.rollouts.until_phase("policy", "Aborted")
    assert status["history"][0] == status["history"][0] | {"version": target, "outcome": "Aborted"}
    assert stage.fleet.serving() == [stable] * 3
    anyloop(stage, "retry", "policy")
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    anyloop(stage, "advance", "policy")
    stage.rollouts.until_phase("policy", "Completed", version=target)
    assert stage.fleet.serving() == [target] * 3
    shown: list[dict[str, Any]] = json.loads(anyloop(stage, "list", "--json"))
    assert [one["status"]["phase"] for one in shown] == ["Completed"]
    trail = [(event.action, event.actor) for _, event in audit_events(stage.fleet.log) if event.subject == target]
    assert {("rollout.abort", operator()), ("rollout.pause", operator()), ("rollout.resume", operator())} <= set(trail)
    assert ("promote", f"rollout/{stage.rollouts.namespace}/policy") in trail


def test_a_canary_that_is_scaled_away_is_replaced_and_a_new_replica_joins_before_the_end(stage: Stage) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    canary = stage.fleet.serving().index(target)
    replica = stage.fleet.replicas[canary]
    stage.kubelet.remove(replica.name)
    status = stage.rollouts.until(
        "policy", lambda status: (status["replicas"]["total"], status["replicas"]["target"]) == (2, 1)
    )
    assert status["phase"] in ("Progressing", "AwaitingAdvance")
    others = [version for number, version in enumerate(stage.fleet.serving()) if number != canary]
    assert sorted(others) == sorted([stable, target])
    stage.kubelet.register(replica.name, replica.ports)
    stage.rollouts.until("policy", lambda status: status["replicas"]["total"] == 3)
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    stage.advance("policy")
    stage.rollouts.until_phase("policy", "Completed", version=target)
    assert stage.fleet.serving() == [target] * 3


def test_a_replica_that_is_told_to_stop_and_starts_again_under_load_costs_no_request(stage: Stage) -> None:
    with Load(stage.fleet.target, clients=2, pause=0.1) as load:
        stage.fleet.restart(0, signal_9=False)
        stage.kubelet.restarted("policy-0")
        stage.until(lambda: stage.fleet.serving()[0] == stage.fleet.promoted, 60)
    assert load.attempts
    assert load.failed == []
