"""A replica that is being changed is not changed a second time by a look that comes meanwhile."""

import asyncio
from collections import Counter

import pytest

from k8s.fleet import Fleet, Limits
from k8s.pods import Pod
from k8s.replicas import Served


class SlowReplicas:
    def __init__(self) -> None:
        self.changes: Counter[tuple[str, str]] = Counter()
        self.versions: dict[str, str] = {}

    async def status(self, pod: Pod) -> Served:
        return Served(self.versions.get(pod.name, "old"))

    async def activate(self, pod: Pod, version: str, mode: str) -> Served:
        self.changes[pod.name, version] += 1
        await asyncio.sleep(0.02)
        self.versions[pod.name] = version
        return Served(version)


@pytest.mark.parametrize("parallel", [1, 2])
async def test_looks_during_changes_repeat_none_of_them(parallel: int) -> None:
    pods = [Pod("n", f"p-{i}", f"uid-{i}", ip="127.0.0.1", control_port=1, ready=True) for i in range(5)]
    replicas = SlowReplicas()
    fleet = Fleet(replicas, Limits(asyncio.Semaphore(8), asyncio.Semaphore(8), 1.0, 1.0), lambda: None)
    async with asyncio.timeout(5):
        while set(replicas.versions.values()) != {"new"} or len(replicas.versions) < len(pods) or fleet.swapping:
            await fleet.observe(pods, 60.0)
            fleet.want({pod.uid: "new" for pod in pods if fleet.version(pod) != "new"}, "", parallel)
            await asyncio.sleep(0.005)
    assert replicas.changes == {(pod.name, "new"): 1 for pod in pods}


async def test_who_is_on_the_way_to_a_version_goes_back_after_it() -> None:
    pod = Pod("n", "p-0", "uid-0", ip="127.0.0.1", control_port=1, ready=True)
    replicas = SlowReplicas()
    fleet = Fleet(replicas, Limits(asyncio.Semaphore(8), asyncio.Semaphore(8), 1.0, 1.0), lambda: None)
    await fleet.observe([pod], 60.0)
    fleet.want({pod.uid: "new"}, "", 1)
    await asyncio.sleep(0.005)
    fleet.want({pod.uid: "old"}, "", 1)
    async with asyncio.timeout(5):
        while fleet.swapping:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
    assert replicas.changes == {("p-0", "new"): 1, ("p-0", "old"): 1}
    assert fleet.version(pod) == "old"
