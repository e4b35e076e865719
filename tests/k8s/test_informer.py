import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from k8s.api import PODS
from k8s.informer import Informer, Key
from tests.k8s.memory_api import MemoryApi
from tests.k8s.simulated_fleet import pod_object

Seen = list[tuple[str, str | None, str | None]]


@asynccontextmanager
async def informed(api: MemoryApi, namespace: str = "shop") -> AsyncIterator[tuple[Informer[str], Seen]]:
    """An informer that keeps the restart counts of pods as text, and what it told."""
    seen: Seen = []

    def changed(key: Key, before: str | None, now: str | None) -> None:
        seen.append((key[1], before, now))

    def restarts(pod: dict) -> str:
        return str(pod["status"]["containerStatuses"][0]["restartCount"])

    informer = Informer(api, PODS, namespace, restarts, changed)
    running = asyncio.create_task(informer.run())
    try:
        await asyncio.wait_for(informer.synced.wait(), 5)
        yield informer, seen
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test's
            await asyncio.sleep(0.005)


async def test_one_list_then_only_what_changes() -> None:
    api = MemoryApi()
    await api.create(PODS, "shop", pod_object("a"))
    async with informed(api) as (informer, seen):
        await api.create(PODS, "shop", pod_object("b"))
        await api.create(PODS, "other", pod_object("c"))
        await api.replace(
            PODS,
            "shop",
            "a",
            {**pod_object("a", restarts=1), "metadata": (await api.get(PODS, "shop", "a"))["metadata"]},
        )
        api.delete(PODS, "shop", "b")
        await until(lambda: len(seen) == 4)
        assert seen == [("a", None, "0"), ("b", None, "0"), ("a", "0", "1"), ("b", "0", None)]
        assert dict(informer.things) == {("shop", "a"): "1"}
        assert api.calls["list pods"] == 1
        assert api.calls["watch pods"] == 1


async def test_a_broken_watch_goes_on_where_it_was() -> None:
    api = MemoryApi()
    async with informed(api) as (_, seen):
        await until(lambda: api.calls["watch pods"] == 1)
        api.break_watches()
        await api.create(PODS, "shop", pod_object("a"))
        await until(lambda: seen)
        assert api.calls["list pods"] == 1
        assert api.calls["watch pods"] == 2


async def test_a_watch_that_is_too_old_begins_with_a_list_that_tells_only_of_changes() -> None:
    api = MemoryApi()
    for name in "abc":
        await api.create(PODS, "shop", pod_object(name))
    async with informed(api) as (_, seen):
        await until(lambda: api.calls["watch pods"] == 1)
        seen.clear()
        api.expired_before = 10**6
        api.break_watches()
        await api.create(PODS, "shop", pod_object("d"))
        api.remove(PODS, "shop", "a")
        await until(lambda: api.calls["list pods"] >= 2)
        assert sorted(seen) == [("a", "0", None), ("d", None, "0")]


async def test_while_the_server_is_away_the_copy_stays() -> None:
    api = MemoryApi()
    await api.create(PODS, "shop", pod_object("a"))
    async with informed(api) as (informer, _):
        await until(lambda: api.calls["watch pods"] == 1)
        api.away = True
        api.break_watches()
        await until(lambda: api.calls["watch pods"] >= 2)
        assert dict(informer.things) == {("shop", "a"): "0"}
        api.away = False
        await api.create(PODS, "shop", pod_object("b"))
        await until(lambda: len(informer.things) == 2)


async def test_what_changes_in_ways_that_nobody_reads_is_not_told() -> None:
    api = MemoryApi()
    await api.create(PODS, "shop", pod_object("a"))
    async with informed(api) as (_, seen):
        await api.patch(PODS, "shop", "a", {"metadata": {"annotations": {"x": "y"}}})
        await api.create(PODS, "shop", pod_object("b"))
        await until(lambda: len(seen) == 2)
        assert [name for name, _, _ in seen] == ["a", "b"]
