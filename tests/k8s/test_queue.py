import asyncio

import pytest

from k8s.queue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock, first_wait=1.0, longest=10.0)


async def taken(queue: WorkQueue[str]) -> str | None:
    """The next key, or None where none is due."""
    try:
        async with asyncio.timeout(0.02):
            return await queue.get()
    except TimeoutError:
        return None


async def test_a_key_that_was_named_often_comes_once(clock: Clock) -> None:
    work = queue(clock)
    work.add("a")
    work.add("a")
    assert await taken(work) == "a"
    work.done("a")
    assert await taken(work) is None


async def test_a_key_that_a_worker_has_comes_again_after_it_and_not_before(clock: Clock) -> None:
    work = queue(clock)
    work.add("a")
    assert await taken(work) == "a"
    work.add("a")
    assert await taken(work) is None
    work.done("a")
    assert await taken(work) == "a"


async def test_the_soonest_of_several_delays_counts(clock: Clock) -> None:
    work = queue(clock)
    work.add("a", 30.0)
    work.add("a", 5.0)
    work.add("a", 60.0)
    clock.now = 4.9
    assert await taken(work) is None
    clock.now = 5.0
    assert await taken(work) == "a"
    work.done("a")
    clock.now = 100.0
    assert await taken(work) is None


async def test_failures_in_a_row_wait_longer_and_longer_and_a_success_ends_that(clock: Clock) -> None:
    work = queue(clock)
    waits = []
    for _ in range(6):
        work.add("a")
        clock.now += 100
        assert await taken(work) == "a"
        waits.append(work.retry("a"))
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    clock.now += 100
    assert await taken(work) == "a"
    work.done("a")
    work.add("a")
    assert await taken(work) == "a"
    assert work.retry("a") == 1.0


async def test_a_waiting_worker_wakes_for_a_key_that_is_named(clock: Clock) -> None:
    work = queue(clock)
    work.add("late", 1000.0)
    waiting = asyncio.create_task(work.get())
    await asyncio.sleep(0)
    work.add("a")
    assert await asyncio.wait_for(waiting, 1.0) == "a"


async def test_keys_come_in_the_order_in_which_they_are_due(clock: Clock) -> None:
    work = queue(clock)
    work.add("b", 2.0)
    work.add("a", 1.0)
    clock.now = 3.0
    assert [await taken(work), await taken(work)] == ["a", "b"]
