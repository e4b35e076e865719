"""What happens to controllers, API servers and replicas in the middle of a rollout changes nothing of its end."""

import threading

import pytest

from anyloop.registry import announce
from anyloop.registry.announce import PROMOTED
from bench.rollout.load import Load
from bench.rollout.versions import LINEAGE
from tests.k8s.e2e.stage import Stage

pytestmark = pytest.mark.e2e

MANUAL_CANARY = {"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]}


def test_a_killed_controller_goes_on_where_it_was_and_does_nothing_twice(stage: Stage) -> None:
    before = stage.swaps()
    controller = stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    run = stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)["run"]
    controller.kill()
    stage.advance("policy")  # told while nobody listens
    controller.restart()
    status = stage.rollouts.until_phase("policy", "Completed", version=target)
    assert status["history"][0]["id"] == run["id"]
    assert status["history"][0]["startedAt"] == run["startedAt"]
    assert stage.promoted == [target]
    assert [after - count for after, count in zip(stage.swaps(), before, strict=True)] == [1, 1, 1]


def test_a_replica_that_restarts_in_mid_rollout_begins_stable_and_is_changed_again(stage: Stage) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    canary = stage.fleet.serving().index(target)
    stage.fleet.restart(canary)
    stage.kubelet.restarted(f"policy-{canary}")
    stage.until(lambda: stage.fleet.serving()[canary] == stable, what="it begins with what the log promoted")
    status = stage.rollouts.until("policy", lambda status: status["replicas"].get("target") == 1)
    assert status["phase"] in ("Progressing", "AwaitingAdvance")
    assert sorted(stage.fleet.serving()) == sorted([stable, stable, target])
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    stage.advance("policy")
    stage.rollouts.until_phase("policy", "Completed", version=target)
    assert stage.fleet.serving() == [target] * 3


def test_who_loses_the_lease_stops_acting_and_another_goes_on(stage: Stage) -> None:
    first = stage.controller("a")
    first.await_leading()
    second = stage.controller("b")
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    assert stage.rollouts.lease()["spec"]["holderIdentity"] == "a"
    assert second.metric("anyloop_controller_is_leader") == 0
    stage.rollouts.steal_lease("somebody-else")
    stage.until(lambda: not first.metric("anyloop_controller_is_leader"), 6, "the first stops leading")
    stage.advance("policy")  # nobody may act on it now: the thief never does
    assert stage.rollouts.status("policy")["phase"] == "AwaitingAdvance"
    stage.until(
        lambda: stage.rollouts.lease()["spec"]["holderIdentity"] in ("a", "b"), 15, "the thief's lease runs out"
    )
    first.kill()
    second.await_leading(15)
    stage.rollouts.until_phase("policy", "Completed", version=target)
    assert stage.promoted == [target]
    assert stage.rollouts.lease()["spec"]["holderIdentity"] == "b"


def test_an_api_server_that_restarts_under_a_rollout_delays_it_and_no_more(stage: Stage) -> None:
    controller = stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    with Load(stage.fleet.target, clients=2, pause=0.05) as load:
        stage.rollouts.plane.restart_apiserver(down_seconds=3)
        stage.advance("policy")
        stage.rollouts.until_phase("policy", "Completed", version=target)
    assert load.failed == []
    assert stage.promoted == [target]
    assert controller.child.exit_status() is None


def test_others_who_write_the_object_all_the_time_do_not_stop_a_rollout(stage: Stage) -> None:
    controller = stage.controller()
    stage.rollouts.create("policy", strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": 1}]})
    ended = threading.Event()

    def write() -> None:
        count = 0
        while not ended.is_set():
            count += 1
            stage.rollouts.annotate("policy", {"example.org/count": str(count)})

    writer = threading.Thread(target=write)
    writer.start()
    try:
        target = stage.approve_sound()
        stage.rollouts.until_phase("policy", "Completed", version=target)
    finally:
        ended.set()
        writer.join()
    assert stage.promoted == [target]
    assert controller.metric("anyloop_rollouts_total", outcome="completed") == 1


def test_a_deletion_in_mid_rollout_returns_the_fleet_to_stable(stage: Stage) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create("policy", strategy=MANUAL_CANARY)
    target = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=target)
    stage.rollouts.delete("policy")
    stage.until(lambda: stage.rollouts.gone("policy"), what="the finalizer lets the object go")
    assert stage.fleet.serving() == [stable] * 3
    assert stage.promoted == []


def test_paused_nothing_changes_until_it_goes_on_and_a_promotion_by_hand_overrides(stage: Stage) -> None:
    stable = stage.fleet.promoted
    stage.controller()
    stage.rollouts.create("policy", strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]})
    given_up = stage.approve_sound()
    stage.rollouts.until_phase("policy", "AwaitingAdvance", version=given_up)
    stage.rollouts.change("policy", {"paused": True})
    stage.rollouts.until_phase("policy", "Paused")
    stage.advance("policy")
    stage.rollouts.until_phase("policy", "Paused")
    assert sorted(stage.fleet.serving()) == sorted([stable, stable, given_up])
    by_hand = stage.fleet.versions.sound()
    announce(stage.fleet.log, LINEAGE, by_hand, PROMOTED, reason="by hand", decided_by="operator")
    stage.fleet.await_serving(by_hand, 20)  # the replicas read the log themselves
    status = stage.rollouts.until("policy", lambda status: status.get("history"), what="is not superseded")
    assert status["history"][0] == status["history"][0] | {"version": given_up, "outcome": "Superseded"}
    assert stage.promoted == [by_hand]
