"""The whole controller over the ports in memory and a real log: what it does to the fleet, the log and the API."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from anyloop.audit import audit_events
from anyloop.log import EventLog, LogError, open_log
from anyloop.registry import announce, checkpoint_events
from anyloop.registry.announce import PROMOTED, REJECTED
from k8s.api import EVENTS, PODS, ROLLOUTS, ApiError, Resource
from k8s.config import ControllerSettings
from k8s.controller import lead
from k8s.informer import Key
from k8s.pods import Pod
from k8s.reconciler import Reconciler
from k8s.scrape import Sample
from k8s.spec import API_VERSION, KIND
from tests.k8s.memory_api import MemoryApi
from tests.k8s.simulated_fleet import SimulatedFleet, pod_object

FAST: dict[str, Any] = {
    "observe_seconds": 0.1,
    "idle_seconds": 0.3,
    "log_poll_seconds": 0.02,
    "status_seconds": 0.2,
    "pod_selector": "",
}


class Stage:
    """A namespace with replicas and one PolicyRollout, and controllers that come and go."""

    def __init__(self, log: EventLog) -> None:
        self.api = MemoryApi()
        self.log = log
        self.replicas = SimulatedFleet()
        self.leads = True

    async def set_up(self, replicas: int, **spec: Any) -> None:
        announce(self.log, "policy", "v1", "promoted", decided_by="base")
        for number in range(replicas):
            await self.api.create(PODS, "shop", pod_object(f"policy-{number}"))
        base = {"selector": {"matchLabels": {"app": "policy"}}, "target": {"channel": "approved"}}
        body = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": "policy"}, "spec": {**base, **spec}}
        await self.api.create(ROLLOUTS, "shop", body)

    def approve(self, version: str) -> None:
        announce(self.log, "policy", version, "approved", decided_by="gate", report={"after": 0.9})

    @asynccontextmanager
    async def controller(self, **changed: Any) -> AsyncIterator[None]:
        settings = ControllerSettings(_env_file=None, **FAST | changed)
        acting = lead(self.api, self.log, self.replicas, settings, "shop", lambda: self.leads)
        running = asyncio.create_task(acting)
        try:
            yield
        finally:
            running.cancel()
            with suppress(asyncio.CancelledError):
                await running

    @property
    def rollout(self) -> dict[str, Any]:
        return self.api.objects["policyrollouts", "shop", "policy"]

    @property
    def status(self) -> dict[str, Any]:
        return dict(self.rollout.get("status", {}))

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def versions(self) -> dict[str, int]:
        return {one["version"]: one["replicas"] for one in self.status.get("versions", ())}

    def words(self, state: int) -> list[str]:
        return [event.version for _, event in checkpoint_events(self.log) if event.state == state]

    def reasons(self) -> set[str]:
        return {found["reason"] for (plural, _, _), found in self.api.objects.items() if plural == EVENTS.plural}

    def audited(self) -> list[str]:
        return [entry.action for _, entry in audit_events(self.log)]

    async def patch(self, **body: Any) -> None:
        await self.api.patch(ROLLOUTS, "shop", "policy", body)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[EventLog]:
    with open_log(f"sqlite:///{tmp_path / 'log.db'}") as found:
        found.ensure_topics()
        yield found


@pytest.fixture
def stage(log: EventLog) -> Stage:
    return Stage(log)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(8):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test's
            await asyncio.sleep(0.01)


CANARY = {"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]}


async def test_an_approved_version_goes_to_one_replica_then_to_all_and_is_promoted_once(stage: Stage) -> None:
    await stage.set_up(4, strategy=CANARY)
    async with stage.controller():
        await until(lambda: stage.phase == "Idle")
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        assert stage.versions == {"v1": 3, "v2": 1}
        assert stage.replicas.serving == {"policy-3": "v2"}
        assert stage.rollout["metadata"]["finalizers"] == ["anyloop.dev/return-to-stable"]
        assert stage.words(PROMOTED) == ["v1"]
        run = stage.status["run"]["id"]
        await stage.patch(metadata={"annotations": {"anyloop.dev/advance": f"{run}/0 joe@desk"}})
        await until(lambda: stage.phase == "Completed" and not stage.rollout["metadata"].get("finalizers"))
    assert stage.versions == {"v2": 4}
    assert stage.words(PROMOTED) == ["v1", "v2"]
    assert set(stage.replicas.changes.values()) == {1}
    assert {"RolloutStarted", "StepReached", "StepStarted", "Completed"} <= stage.reasons()
    assert [action for action in stage.audited() if action != "approve"] == [
        "promote",
        "rollout.start",
        "rollout.step",
        "promote",
        "rollout.complete",
    ]
    conditions = {one["type"]: one["status"] for one in stage.status["conditions"]}
    assert conditions == {
        "Progressing": "False",
        "Available": "True",
        "Mixed": "False",
        "Paused": "False",
        "Degraded": "False",
    }


async def test_weights_that_a_replica_refuses_are_rejected_once_with_the_reason(stage: Stage) -> None:
    stage.replicas.refused = {"v2"}
    await stage.set_up(3)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "RolledBack")
        await asyncio.sleep(0.3)
    assert stage.versions == {"v1": 3}
    assert stage.words(REJECTED) == ["v2"]
    assert "v2 is corrupt" in stage.status["history"][0]["reason"]
    assert not stage.replicas.changes


async def test_weights_that_break_while_they_load_cost_a_few_attempts_and_end(stage: Stage) -> None:
    stage.replicas.broken = {"v2"}
    await stage.set_up(3, maxReplicaFailures=1)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "RolledBack")
    assert "2 replicas crashed on v2 or failed to load it" in stage.status["history"][0]["reason"]
    assert "ReplicaFailed" in stage.reasons()


async def test_a_controller_that_takes_over_goes_on_and_does_nothing_twice(stage: Stage) -> None:
    stage.replicas.seconds = 0.02
    await stage.set_up(12, maxSwapping=2)
    stage.approve("v2")
    for count in (2, 5, 9):
        async with stage.controller():
            await until(lambda count=count: len(stage.replicas.serving) >= count)
    async with stage.controller():
        await until(lambda: stage.phase == "Completed")
    assert stage.versions == {"v2": 12}
    assert stage.words(PROMOTED) == ["v1", "v2"]
    assert set(stage.replicas.changes.values()) == {1}
    assert len(stage.status["history"]) == 1
    assert stage.audited().count("rollout.start") == 1


async def test_writes_of_others_meanwhile_only_cost_another_look(stage: Stage) -> None:
    stage.replicas.seconds = 0.01
    await stage.set_up(8)

    async def meddle() -> None:
        for number in range(200):
            await stage.patch(metadata={"annotations": {"somebody": str(number)}})
            await asyncio.sleep(0.005)

    async with stage.controller():
        meddling = asyncio.create_task(meddle())
        stage.approve("v2")
        await until(lambda: stage.phase == "Completed")
        await meddling
    assert stage.words(PROMOTED) == ["v1", "v2"]
    assert set(stage.replicas.changes.values()) == {1}


async def test_a_replica_that_restarts_in_the_middle_is_changed_again(stage: Stage) -> None:
    await stage.set_up(3, strategy={"type": "Canary", "steps": [{"replicas": 2, "pause": "manual"}]})
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        del stage.replicas.serving["policy-2"]  # it began anew, with what the log promotes
        pod = await stage.api.get(PODS, "shop", "policy-2")
        await stage.api.replace(
            PODS, "shop", "policy-2", {**pod_object("policy-2", restarts=1), "metadata": pod["metadata"]}
        )
        await until(lambda: stage.replicas.serving.get("policy-2") == "v2")
        await until(lambda: stage.status["run"].get("failures") == 1 and "shortSince" not in stage.status["run"])
        assert stage.phase == "AwaitingAdvance"
        assert stage.versions == {"v1": 1, "v2": 2}


async def test_a_fleet_that_grows_in_the_middle_of_a_share_follows(stage: Stage) -> None:
    await stage.set_up(4, strategy={"type": "Canary", "steps": [{"replicas": "50%", "pause": "manual"}]})
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        for number in range(4, 8):
            await stage.api.create(PODS, "shop", pod_object(f"policy-{number}"))
        await until(lambda: stage.versions == {"v1": 4, "v2": 4})


async def test_an_abort_returns_the_fleet_and_a_retry_brings_the_version_again(stage: Stage) -> None:
    await stage.set_up(3, strategy=CANARY)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        run = stage.status["run"]["id"]
        await stage.patch(metadata={"annotations": {"anyloop.dev/abort": f"{run} joe@desk"}})
        await until(lambda: stage.phase == "Aborted")
        assert stage.versions == {"v1": 3}
        assert stage.words(REJECTED) == ["v2"]
        await stage.patch(metadata={"annotations": {"anyloop.dev/retry": f"{run} joe@desk"}})
        await until(lambda: stage.phase == "AwaitingAdvance")
        assert stage.status["run"]["version"] == "v2"


async def test_a_deletion_in_the_middle_returns_the_fleet_before_the_object_goes(stage: Stage) -> None:
    await stage.set_up(3, strategy=CANARY)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        stage.api.delete(ROLLOUTS, "shop", "policy")
        await until(lambda: ("policyrollouts", "shop", "policy") not in stage.api.objects)
    assert stage.replicas.serving == {"policy-2": "v1"}
    assert stage.words(REJECTED) == ["v2"]


async def test_a_deletion_does_not_wait_for_ever_for_a_log_that_is_away(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(*_: object, **__: object) -> None:
        raise LogError("no broker answers", retriable=True)

    await stage.set_up(3, strategy=CANARY)
    async with stage.controller(deletion_seconds=1.0):
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        monkeypatch.setattr("k8s.checkpoints.Checkpoints.reject", away)
        stage.api.delete(ROLLOUTS, "shop", "policy")
        await until(lambda: stage.replicas.serving == {"policy-2": "v1"})
        assert ("policyrollouts", "shop", "policy") in stage.api.objects  # the log may still come back
        await until(lambda: ("policyrollouts", "shop", "policy") not in stage.api.objects)
    assert "is let go, and the log does not say what became of its rollout: no broker answers" in caplog.text


async def test_the_audit_trail_lacks_nothing_where_a_controller_is_killed_before_it_writes(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.replicas.refused = {"v2"}
    await stage.set_up(3)
    write = stage.api.replace

    async def killed(resource: Resource, namespace: str, name: str, body: dict[str, Any], subresource: str = "") -> Any:
        if body.get("status", {}).get("phase") == "RollingBack":
            raise ApiError("the process is gone")
        return await write(resource, namespace, name, body, subresource)

    monkeypatch.setattr(stage.api, "replace", killed)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: "rollout.rollback" in stage.audited())
        assert stage.phase == "Progressing"
    monkeypatch.undo()
    async with stage.controller():
        await until(lambda: stage.phase == "RolledBack")
    assert stage.audited().count("rollout.rollback") == 1


async def test_the_audit_trail_has_a_rollouts_start_where_a_controller_is_killed_after_it_wrote(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def killed(*_: object, **__: object) -> None:
        await asyncio.Event().wait()

    await stage.set_up(3, strategy=CANARY)
    with monkeypatch.context() as patch:
        patch.setattr("k8s.checkpoints.Checkpoints.audit", killed)
        async with stage.controller():
            stage.approve("v2")
            await until(lambda: "run" in stage.status)
            await asyncio.sleep(0.1)
    assert "rollout.start" not in stage.audited()
    for _ in range(2):
        async with stage.controller():
            await until(lambda: stage.phase == "AwaitingAdvance" and "rollout.start" in stage.audited())
    assert stage.audited().count("rollout.start") == 1


async def test_a_pause_is_told_once_though_its_write_meets_conflicts(stage: Stage) -> None:
    await stage.set_up(3, strategy=CANARY)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        write, refusals = stage.api.replace, iter(range(2))

        async def refused(*arguments: Any) -> Any:
            if next(refusals, None) is not None:
                raise ApiError("the object has been modified", 409)
            return await write(*arguments)

        stage.api.replace = refused  # type: ignore[method-assign]
        await stage.patch(spec={"paused": True})
        await until(lambda: stage.phase == "Paused")
        assert stage.audited().count("rollout.pause") == 1
        await stage.patch(spec={"paused": False})
        await until(lambda: stage.phase == "AwaitingAdvance")
        await stage.patch(spec={"paused": True})
        await until(lambda: stage.phase == "Paused")
    assert stage.audited().count("rollout.pause") == 2


async def test_rollouts_of_another_release_are_left_alone(stage: Stage) -> None:
    await stage.set_up(2)
    await stage.patch(metadata={"labels": {"release": "a"}})
    other = {**stage.rollout, "metadata": {"name": "b", "labels": {"release": "b"}}}
    other["metadata"]["creationTimestamp"] = "2025-01-01T00:00:00Z"  # the older one would decide
    await stage.api.create(ROLLOUTS, "shop", other)
    async with stage.controller(rollout_selector="release=a"):
        stage.approve("v2")
        await until(lambda: stage.phase == "Completed")
    assert "status" not in stage.api.objects["policyrollouts", "shop", "b"]


async def test_a_deletion_of_an_idle_rollout_waits_for_nobody(stage: Stage) -> None:
    await stage.set_up(3)
    async with stage.controller():
        await until(lambda: stage.phase == "Idle")
    stage.api.delete(ROLLOUTS, "shop", "policy")
    assert ("policyrollouts", "shop", "policy") not in stage.api.objects


async def test_an_operators_promotion_ends_the_rollout_and_approved_versions_that_were_overtaken_are_rejected(
    stage: Stage,
) -> None:
    await stage.set_up(3, strategy=CANARY)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        announce(stage.log, "policy", "v9", "promoted", decided_by="joe@desk")
        await until(lambda: stage.phase == "Superseded")
        assert stage.words(REJECTED) == ["v2"]
        stage.approve("v10")
        stage.approve("v11")
        await until(lambda: stage.status.get("run", {}).get("version") == "v11")
    assert stage.words(REJECTED) == ["v2", "v10"]


async def test_an_operators_promotion_of_the_stable_version_again_ends_the_rollout(stage: Stage) -> None:
    await stage.set_up(3, strategy=CANARY)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        announce(stage.log, "policy", "v1", "promoted", decided_by="joe@desk")
        stage.replicas.serving.clear()  # every replica obeys the log
        await until(lambda: stage.phase == "Superseded")
        await asyncio.sleep(0.3)
    assert stage.versions == {"v1": 3}
    assert "v2" not in stage.replicas.serving.values()
    assert stage.words(PROMOTED) == ["v1", "v1"]
    assert stage.words(REJECTED) == ["v2"]


async def test_an_operators_promotion_in_the_last_moment_is_not_promoted_over(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stage.set_up(2)
    stage.approve("v2")
    replace = stage.api.replace

    async def and_promote(resource: Any, namespace: str, name: str, body: Any, *more: Any) -> Any:
        written = await replace(resource, namespace, name, body, *more)
        if body.get("status", {}).get("phase") == "Promoting":
            announce(stage.log, "policy", "v9", "promoted", decided_by="joe@desk")
        return written

    monkeypatch.setattr(stage.api, "replace", and_promote)
    monkeypatch.setitem(FAST, "log_poll_seconds", 60.0)  # the controller does not hear of it by itself
    async with stage.controller():
        await until(lambda: stage.phase == "Superseded")
    assert stage.words(PROMOTED) == ["v1", "v9"]


async def test_a_fleet_that_is_taken_away_in_the_middle_is_not_promoted(stage: Stage) -> None:
    await stage.set_up(3, strategy={"type": "Canary", "steps": [{"replicas": 1, "pause": 1}]})
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.versions == {"v1": 2, "v2": 1})
        for number in range(3):
            stage.api.remove(PODS, "shop", f"policy-{number}")
        await until(lambda: stage.status["replicas"]["total"] == 0)
        await asyncio.sleep(1.2)
        assert "no replica is ready" in stage.status["message"]
        assert stage.words(PROMOTED) == ["v1"]
        stage.replicas.serving.clear()
        for number in range(2):
            await stage.api.create(PODS, "shop", pod_object(f"policy-{number}"))
        await until(lambda: stage.phase == "Completed")
    assert stage.replicas.serving == {"policy-0": "v2", "policy-1": "v2"}


async def test_weights_that_crash_two_of_three_replicas_are_not_promoted(stage: Stage) -> None:
    stage.replicas.seconds = 0.1
    await stage.set_up(3, progressDeadlineSeconds=2)

    async def crash(name: str) -> None:
        await until(lambda: stage.replicas.serving.get(name) == "v2")
        del stage.replicas.serving[name]
        pod = await stage.api.get(PODS, "shop", name)
        crashed = {**pod_object(name, ready=False, restarts=1), "metadata": pod["metadata"]}
        await stage.api.replace(PODS, "shop", name, crashed)

    async with stage.controller():
        stage.approve("v2")
        await asyncio.gather(crash("policy-2"), crash("policy-1"))
        await until(lambda: stage.phase == "RolledBack")
    assert stage.words(PROMOTED) == ["v1"]
    assert stage.words(REJECTED) == ["v2"]


async def test_replicas_of_a_version_that_was_given_up_serve_it_no_longer_while_the_next_is_tried(stage: Stage) -> None:
    await stage.set_up(6, strategy={"type": "Canary", "steps": [{"replicas": "50%", "pause": "manual"}]})
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.versions == {"v1": 3, "v2": 3})
        await stage.patch(spec={"strategy": CANARY})
        stage.approve("v3")
        await until(lambda: stage.versions == {"v1": 5, "v3": 1})
        assert stage.phase == "AwaitingAdvance"
    assert stage.words(REJECTED) == ["v2"]


async def test_a_replica_on_a_version_that_the_history_forgot_goes_back(stage: Stage) -> None:
    await stage.set_up(3, strategy=CANARY, historyLimit=1)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        announce(stage.log, "policy", "v2", "rejected", decided_by="joe@desk")
        await until(lambda: stage.phase == "Aborted")
        stage.approve("v3")
        await until(lambda: stage.status.get("run", {}).get("version") == "v3" and stage.phase == "AwaitingAdvance")
        await stage.patch(metadata={"annotations": {"anyloop.dev/abort": stage.status["run"]["id"]}})
        await until(lambda: stage.phase == "Aborted" and stage.status["history"][0]["version"] == "v3")
        assert len(stage.status["history"]) == 1
        stage.replicas.serving["policy-0"] = "v2"  # it was away all the time
        await until(lambda: stage.replicas.serving["policy-0"] == "v1")


async def test_a_version_that_fails_again_is_rejected_again(stage: Stage) -> None:
    stage.replicas.refused = {"v2"}
    await stage.set_up(2)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "RolledBack")
        first = stage.status["history"][0]["id"]
        await stage.patch(metadata={"annotations": {"anyloop.dev/retry": first}})
        await until(lambda: stage.phase == "RolledBack" and len(stage.status["history"]) == 2)
    assert stage.words(REJECTED) == ["v2", "v2"]


async def test_replicas_that_are_new_and_not_ready_keep_no_other_from_its_change(stage: Stage) -> None:
    await stage.set_up(4, progressDeadlineSeconds=1, strategy={"type": "Manual"})
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        for number in (4, 5):
            await stage.api.create(PODS, "shop", pod_object(f"policy-{number}", ready=False))
        await until(lambda: stage.status["replicas"]["total"] == 6)
        run = stage.status["run"]["id"]
        await stage.patch(metadata={"annotations": {"anyloop.dev/advance": f"{run}/0"}})
        await until(lambda: stage.versions == {"v1": 3, "v2": 1})


async def test_failed_measurements_survive_a_pause_and_a_takeover(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [2.0]

    async def query(*_: object) -> tuple[float, str]:
        return found[0], ""

    monkeypatch.setattr("k8s.measuring.Meter.query", query)
    metric = {"name": "refusals", "prometheus": {"query": "refusals", "max": 1}}
    analysis = {"warmUpSeconds": 0, "intervalSeconds": 1, "failureLimit": 1, "metrics": [metric]}
    await stage.set_up(2, strategy=CANARY, analysis=analysis)

    def failed() -> int:
        return sum(one.get("failures", 0) for one in stage.status.get("analysis", ()))

    async with stage.controller():
        stage.approve("v2")
        await until(lambda: failed() == 1)
        await stage.patch(spec={"paused": True})
        await until(lambda: stage.phase == "Paused")
    found[0] = 0.5
    async with stage.controller():
        await asyncio.sleep(0.3)
        await stage.patch(spec={"paused": False})
        await until(lambda: any(one["verdict"] == "Passed" for one in stage.status["analysis"]))
        assert failed() == 1
        found[0] = 2.0
        await until(lambda: stage.phase == "RolledBack")


async def test_an_analysis_that_is_removed_in_mid_step_makes_no_hot_loop(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def query(*_: object) -> tuple[float, str]:
        return 0.5, ""

    monkeypatch.setattr("k8s.measuring.Meter.query", query)
    metric = {"name": "refusals", "prometheus": {"query": "refusals", "max": 1}}
    analysis = {"warmUpSeconds": 0, "intervalSeconds": 0.1, "metrics": [metric]}
    await stage.set_up(2, strategy=CANARY, analysis=analysis)
    looks = 0
    look = Reconciler.reconcile

    async def counted(reconciler: Reconciler, key: Key) -> float:
        nonlocal looks
        looks += 1
        return await look(reconciler, key)

    monkeypatch.setattr(Reconciler, "reconcile", counted)
    async with stage.controller(observe_seconds=1.0):
        stage.approve("v2")
        await until(lambda: any(one["verdict"] == "Passed" for one in stage.status.get("analysis", ())))
        await stage.patch(spec={"analysis": None})
        await asyncio.sleep(0.2)
        looks = 0
        await asyncio.sleep(1.0)
    assert looks <= 4  # one each second


async def test_a_comparison_waits_for_stable_replicas_that_do_not_answer(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"requests": 0.0}

    async def look(_: object, pods: Sequence[Pod], __: str) -> dict[str, tuple[str, Sample]]:
        pages["requests"] += 50
        return {pod.uid: ("c", Sample(pages["requests"], 0.0)) for pod in pods}

    monkeypatch.setattr("k8s.measuring.Meter.look", look)
    metric = {"name": "errors", "errorRate": {"maxDifference": 0.01}}
    analysis = {"warmUpSeconds": 0, "intervalSeconds": 0.1, "metrics": [metric]}
    steps = {"type": "Canary", "steps": [{"replicas": 1, "pause": "manual"}]}
    await stage.set_up(2, strategy=steps, analysis=analysis)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "AwaitingAdvance")
        stage.replicas.away = {"policy-0"}
        await until(lambda: stage.status["replicas"]["unreachable"] == 1)
        await until(lambda: any(one["verdict"] == "Inconclusive" for one in stage.status["analysis"]))
        stage.replicas.away = set()
        await until(lambda: any(one["verdict"] == "Passed" for one in stage.status["analysis"]))


async def test_of_two_rollouts_of_one_lineage_the_younger_does_nothing(stage: Stage) -> None:
    await stage.set_up(2)
    younger = {**stage.rollout, "metadata": {"name": "late", "creationTimestamp": "2026-02-02T00:00:00Z"}}
    await stage.api.create(ROLLOUTS, "shop", younger)
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "Completed")
        late = stage.api.objects["policyrollouts", "shop", "late"]
        await until(lambda: stage.api.objects["policyrollouts", "shop", "late"].get("status"))
        late = stage.api.objects["policyrollouts", "shop", "late"]
    assert late["status"]["phase"] == "Conflicted"
    assert "shop/policy is older" in late["status"]["message"]


async def test_a_controller_that_lost_the_lease_changes_nothing(stage: Stage) -> None:
    await stage.set_up(3)
    async with stage.controller():
        await until(lambda: stage.phase == "Idle")
        stage.leads = False
        before = stage.api.objects["policyrollouts", "shop", "policy"]["metadata"]["resourceVersion"]
        stage.approve("v2")
        await asyncio.sleep(0.5)
        assert stage.rollout["metadata"]["resourceVersion"] == before
        assert not stage.replicas.changes
        assert stage.words(PROMOTED) == ["v1"]


async def test_while_the_api_server_is_away_nothing_is_lost(stage: Stage) -> None:
    await stage.set_up(3)
    async with stage.controller():
        await until(lambda: stage.phase == "Idle")
        stage.api.away = True
        stage.api.break_watches()
        stage.approve("v2")
        await asyncio.sleep(0.3)
        assert not stage.replicas.changes
        stage.api.away = False
        await until(lambda: stage.phase == "Completed")


async def test_calls_to_the_api_do_not_grow_with_the_fleet(stage: Stage) -> None:
    await stage.set_up(300, maxSwapping=50)
    stage.replicas.seconds = 0.005
    before = stage.api.calls.copy()
    async with stage.controller():
        stage.approve("v2")
        await until(lambda: stage.phase == "Completed")
    calls = stage.api.calls - before
    assert stage.versions == {"v2": 300}
    assert calls["list pods"] == 1
    assert calls["watch pods"] == 1
    assert calls["update_status policyrollouts"] <= 20
    assert calls["patch policyrollouts"] <= 2


async def test_a_replica_that_cannot_be_changed_now_is_named_in_the_status(stage: Stage) -> None:
    await stage.set_up(2, progressDeadlineSeconds=60)
    async with stage.controller():
        await until(lambda: stage.phase == "Idle")
        stage.replicas.away = {"policy-1"}
        stage.approve("v2")
        await until(lambda: "nobody there" in json.dumps(stage.status.get("conditions", "")))
        assert stage.phase == "Progressing"
        stage.replicas.away = set()
        await until(lambda: stage.phase == "Completed")
    degraded = next(one for one in stage.status["conditions"] if one["type"] == "Degraded")
    assert degraded["status"] == "False"
