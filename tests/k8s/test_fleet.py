import asyncio
from collections.abc import Callable

import pytest

from k8s.fleet import Fleet, Limits, Loss
from k8s.pods import Pod
from k8s.replicas import Fault
from tests.k8s.simulated_fleet import SimulatedFleet, pod_object


def pods(count: int, **changes: object) -> list[Pod]:
    found = []
    for number in range(count):
        document = pod_object(f"policy-{number}", **changes)  # type: ignore[arg-type]
        document["metadata"] |= {"namespace": "shop", "uid": f"uid-{number}"}
        found.append(Pod.read(document))
    return found


class Stage:
    def __init__(self, replicas: SimulatedFleet, allowed: Callable[[], bool] = lambda: True) -> None:
        self.now = 0.0
        self.woken = 0
        limits = Limits(asyncio.Semaphore(64), asyncio.Semaphore(64), 0.2, 0.5, allowed)
        self.fleet = Fleet(replicas, limits, self._wake, lambda: self.now)

    def _wake(self) -> None:
        self.woken += 1

    async def settle(self) -> None:
        async with asyncio.timeout(5):
            while self.fleet.swapping:  # noqa: ASYNC110 - the condition is the code under test's
                await asyncio.sleep(0.002)


@pytest.fixture
def replicas() -> SimulatedFleet:
    return SimulatedFleet()


async def test_a_replica_is_asked_again_only_when_its_answer_is_old_or_of_a_process_before(
    replicas: SimulatedFleet,
) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(3), 5.0)
    await stage.fleet.observe(pods(3), 5.0)
    assert replicas.asked == 3
    stage.now = 5.0
    await stage.fleet.observe(pods(3), 5.0)
    assert replicas.asked == 6
    await stage.fleet.observe(pods(3, restarts=1), 5.0)
    assert replicas.asked == 9


async def test_pods_that_are_not_ready_are_not_asked(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(3, ready=False), 5.0)
    assert replicas.asked == 0
    assert stage.fleet.usable == []
    assert len(stage.fleet.pods) == 3


async def test_no_more_change_together_than_allowed_and_all_do_in_the_end(replicas: SimulatedFleet) -> None:
    replicas.seconds = 0.01
    stage = Stage(replicas)
    await stage.fleet.observe(pods(9), 5.0)
    stage.fleet.want({pod.uid: "v2" for pod in stage.fleet.usable}, "", 3)
    assert stage.fleet.swapping == 3
    await stage.settle()
    assert replicas.most_together == 3
    assert stage.fleet.versions == {"v2": 9}
    assert stage.woken == 9


async def test_what_is_wanted_later_replaces_what_was_wanted_before(replicas: SimulatedFleet) -> None:
    replicas.seconds = 0.01
    stage = Stage(replicas)
    await stage.fleet.observe(pods(4), 5.0)
    stage.fleet.want({pod.uid: "v2" for pod in stage.fleet.usable}, "", 1)
    stage.fleet.want({}, "", 1)
    await stage.settle()
    assert stage.fleet.versions == {"v2": 1, "v1": 3}


async def test_refused_weights_stop_the_others_from_trying(replicas: SimulatedFleet) -> None:
    replicas.refused = {"v2"}
    stage = Stage(replicas)
    await stage.fleet.observe(pods(4), 5.0)
    stage.fleet.want({pod.uid: "v2" for pod in stage.fleet.usable}, "", 1)
    await stage.settle()
    assert [failure.fault for failure in stage.fleet.failures] == [Fault.REFUSED]


async def test_a_replica_that_does_not_answer_is_tried_again_later_and_later(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(1), 5.0)
    replicas.away = {"policy-0"}
    tries = []
    for _ in range(16):
        before = len(stage.fleet.failures)
        stage.fleet.want({"uid-0": "v2"}, "", 1)
        await stage.settle()
        if len(stage.fleet.failures) > before:
            tries.append(stage.now)
        stage.now += 1.0
    assert tries == [0.0, 1.0, 3.0, 7.0, 15.0]


async def test_a_change_that_takes_too_long_has_failed(replicas: SimulatedFleet) -> None:
    replicas.seconds = 60.0
    stage = Stage(replicas)
    await stage.fleet.observe(pods(1), 5.0)
    stage.fleet.want({"uid-0": "v2"}, "", 1)
    await stage.settle()
    assert stage.fleet.failures[0].message == "policy-0 did not change its weights within 0.5 s"


async def test_a_replica_that_crashes_on_what_it_was_changed_to_is_noticed_once(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    stage.fleet.want({"uid-0": "v2"}, "", 1)
    await stage.settle()
    replicas.serving.clear()  # it began anew, with what the log promotes
    restarted = [pods(1, restarts=1)[0], pods(2)[1]]
    await stage.fleet.observe(restarted, 5.0)
    await stage.fleet.observe(restarted, 5.0)
    assert stage.fleet.lost == [Loss("policy-0", "v2")]
    assert stage.fleet.versions == {"v1": 2}


async def test_a_replica_that_is_scaled_away_has_not_crashed(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    stage.fleet.want({"uid-1": "v2"}, "", 1)
    await stage.settle()
    await stage.fleet.observe(pods(1), 5.0)
    assert stage.fleet.lost == []


async def test_a_replica_that_crashes_while_it_loads_is_noticed(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    replicas.away = {"policy-0"}
    stage.fleet.want({"uid-0": "v2"}, "", 1)
    await stage.settle()
    assert [failure.fault for failure in stage.fleet.failures] == [Fault.AWAY]
    assert stage.fleet.lost == []
    await stage.fleet.observe([pods(1, ready=False)[0], pods(2)[1]], 5.0)
    assert stage.fleet.lost == [Loss("policy-0", "v2")]


async def test_a_replica_that_only_did_not_answer_a_change_is_not_lost(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(1), 5.0)
    replicas.away = {"policy-0"}
    stage.fleet.want({"uid-0": "v2"}, "", 1)
    await stage.settle()
    replicas.away = set()
    await stage.fleet.observe(pods(1), 5.0)
    assert stage.fleet.versions == {"v1": 1}
    assert stage.fleet.lost == []


async def test_a_replica_that_a_controller_before_changed_is_noticed_when_it_crashes(replicas: SimulatedFleet) -> None:
    replicas.serving = {"policy-0": "v2"}
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0, given="v2")
    await stage.fleet.observe(pods(2, ready=False), 5.0, given="v2")
    assert stage.fleet.lost == [Loss("policy-0", "v2")]


async def test_what_happens_after_a_run_is_not_its_fault(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(1), 5.0)
    stage.fleet.want({"uid-0": "v2"}, "", 1)
    await stage.settle()
    stage.fleet.end_run()
    await stage.fleet.observe(pods(1, ready=False), 5.0)
    assert stage.fleet.lost == []


async def test_a_controller_that_no_longer_leads_changes_nothing(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas, allowed=lambda: False)
    await stage.fleet.observe(pods(2), 5.0)
    stage.fleet.want({"uid-0": "v2", "uid-1": "v2"}, "", 2)
    assert stage.fleet.swapping == 0
    assert not replicas.changes


async def test_closing_breaks_off_what_runs(replicas: SimulatedFleet) -> None:
    replicas.seconds = 60.0
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    stage.fleet.want({"uid-0": "v2", "uid-1": "v2"}, "", 2)
    await asyncio.sleep(0.01)
    await stage.fleet.close()
    assert stage.fleet.swapping == 0
    assert not replicas.changes


async def test_replicas_that_do_not_answer_are_unreachable_and_serve_nothing_known(replicas: SimulatedFleet) -> None:
    replicas.away = {"policy-0"}
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    assert [pod.name for pod in stage.fleet.unreachable] == ["policy-0"]
    assert "nobody there" in stage.fleet.why_unreachable
    assert stage.fleet.versions == {"v1": 1}


async def test_other_weights_under_the_announced_name_are_refused(replicas: SimulatedFleet) -> None:
    stage = Stage(replicas)
    await stage.fleet.observe(pods(2), 5.0)
    stage.fleet.want({"uid-0": "v2"}, "", 1, digests={"v2": "digest of v2"})
    await stage.settle()
    assert stage.fleet.failures == []
    stage.fleet.want({"uid-1": "v2"}, "", 1, digests={"v2": "what the gate has seen", "v1": "of another"})
    await stage.settle()
    assert [failure.fault for failure in stage.fleet.failures] == [Fault.REFUSED]
    assert "the log announced what the gate has seen" in stage.fleet.failures[0].message


async def test_replicas_are_asked_while_as_many_as_may_change_at_all_do(replicas: SimulatedFleet) -> None:
    replicas.seconds = 0.3
    limits = Limits(asyncio.Semaphore(1), asyncio.Semaphore(2), 0.2, 0.5)
    fleet = Fleet(replicas, limits, lambda: None)
    await fleet.observe(pods(4), 0.0)
    fleet.want({"uid-0": "v2", "uid-1": "v2", "uid-2": "v2"}, "", 3)
    await asyncio.sleep(0.01)
    assert replicas.together == 2
    async with asyncio.timeout(0.2):
        await fleet.observe(pods(4), 0.0)
    await fleet.close()
