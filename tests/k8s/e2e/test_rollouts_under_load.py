"""Real weights are swapped on real replicas while clients ask: nobody notices a good version, few a bad one."""

import time

import pytest

from anyloop.registry.announce import PROMOTED
from bench.rollout.load import Load
from tests.k8s.e2e.stage import Stage

pytestmark = pytest.mark.e2e

ERRORS = {
    "intervalSeconds": 1,
    "warmUpSeconds": 0,
    "minimumRequests": 5,
    "metrics": [{"name": "errors", "errorRate": {"max": 0.2}}],
}


def test_a_canary_waits_for_an_operator_and_ends_in_a_promotion_without_a_failed_request(stage: Stage) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create(
        "policy", strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]}, analysis=ERRORS
    )
    with Load(stage.fleet.target, clients=3, pause=0.02) as load:
        target = stage.approve_sound()
        status = stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
        assert status["replicas"] == status["replicas"] | {"total": 3, "ready": 3, "target": 1, "stable": 2}
        assert status["mixedSince"]
        assert sorted(stage.fleet.serving()) == sorted([stable, stable, target])
        assert stage.promoted == []
        stage.advance("policy")
        status = stage.rollouts.until_phase("policy", "Completed", version=target)
        time.sleep(0.5)
    assert stage.fleet.serving() == [target] * 3
    (event,) = stage.announcements(PROMOTED)
    assert (event.version, event.decided_by) == (target, f"rollout/{stage.rollouts.namespace}/policy")
    assert status["history"][0] == status["history"][0] | {"version": target, "outcome": "Completed", "stable": stable}
    assert status["stableVersion"] == target
    assert "mixedSince" not in status
    assert load.failed == []
    assert {attempt.version for attempt in load.attempts} == {stable, target}
    reasons = {event["reason"] for event in stage.rollouts.events()}
    assert reasons >= {"RolloutStarted", "StepStarted", "Completed"}


def test_weights_that_fail_in_service_are_rolled_back_and_never_leave_the_canary(stage: Stage) -> None:
    stable, before = stage.fleet.promoted, stage.swaps()
    failures = internal_failures(stage)
    stage.controller()
    stage.rollouts.create(
        "policy", strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": 60}]}, analysis=ERRORS
    )
    with Load(stage.fleet.target, clients=3, pause=0.02) as load:
        bad = stage.fleet.versions.approve(stage.fleet.versions.overflowing())
        status = stage.rollouts.until(
            "policy", lambda status: any(one["version"] == bad for one in status.get("history", ()))
        )
        ended = time.monotonic()
        time.sleep(1.5)
    assert status["history"][0] == status["history"][0] | {"version": bad, "outcome": "RolledBack", "peak": 1}
    assert "errors" in status["history"][0]["reason"]
    assert stage.fleet.serving() == [stable] * 3
    assert (stage.promoted, stage.rejected) == ([], [bad])
    changes = [after - count for after, count in zip(stage.swaps(), before, strict=True)]
    assert sorted(changes) == [0, 0, 2]  # there and back, on one replica
    assert load.failed
    assert internal_failures(stage) - failures == len(load.failed)
    assert {attempt.code for attempt in load.failed} == {"INTERNAL"}
    assert [attempt for attempt in load.since(ended) if attempt.code != "OK"] == []
    share = len(load.failed) / len(load.attempts)
    assert share < 0.5  # one replica of three, for the seconds that the analysis took


def test_damaged_files_are_refused_by_the_first_replica_and_nothing_changes(stage: Stage) -> None:
    stable, before = stage.fleet.promoted, stage.swaps()
    stage.controller()
    stage.rollouts.create("policy")
    with Load(stage.fleet.target, clients=2, pause=0.05) as load:
        bad = stage.fleet.versions.approve(stage.fleet.versions.damaged())
        stage.until(lambda: stage.rejected == [bad], what="the version is rejected")
    status = stage.rollouts.until("policy", lambda status: status.get("history"))
    assert status["history"][0] == status["history"][0] | {"version": bad, "outcome": "RolledBack", "peak": 0}
    assert "SHA-256" in status["history"][0]["reason"]
    assert stage.fleet.serving() == [stable] * 3
    assert stage.swaps() == before
    assert load.failed == []


def internal_failures(stage: Stage) -> float:
    """As the replicas count them."""
    return sum(
        stage.fleet.metric(number, "anyloop_request_failures_total", model_name="policy", code="INTERNAL")
        for number in range(3)
    )
