import asyncio
from collections.abc import Callable
from contextlib import suppress

import pytest

from k8s.api import LEASES
from k8s.config import ControllerSettings
from k8s.lease import Leadership
from tests.k8s.memory_api import MemoryApi

PACE = {"lease_seconds": 0.4, "renew_seconds": 0.25, "retry_seconds": 0.03}


class Candidate:
    """A controller that only notes when it leads."""

    def __init__(self, api: MemoryApi, name: str) -> None:
        settings = ControllerSettings(identity=name, _env_file=None, **PACE)  # type: ignore[call-arg,arg-type]
        self.leadership = Leadership(api, settings, "shop")
        self.leads = False
        self.terms = 0
        self.task = asyncio.create_task(self.leadership.run(self._lead))

    async def _lead(self) -> None:
        self.leads, self.terms = True, self.terms + 1
        try:
            await asyncio.Event().wait()
        finally:
            self.leads = False

    async def stop(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition is the code under test's
            await asyncio.sleep(0.005)


def holder(api: MemoryApi) -> str:
    return str(api.objects["leases", "shop", "anyloop-controller"]["spec"]["holderIdentity"])


async def test_one_of_two_leads_and_a_clean_stop_hands_over_at_once() -> None:
    api = MemoryApi()
    first, second = Candidate(api, "first"), Candidate(api, "second")
    await until(lambda: first.leads)
    await asyncio.sleep(0.5)  # longer than the lease lasts without renewals
    assert not second.leads
    await first.stop()
    assert holder(api) in ("", "second")
    await until(lambda: second.leads)
    await second.stop()


async def test_a_holder_that_cannot_renew_stops_before_another_may_begin() -> None:
    api = MemoryApi()
    first = Candidate(api, "first")
    await until(lambda: first.leads)
    api.away = True
    began = asyncio.get_running_loop().time()
    await until(lambda: not first.leads)
    assert asyncio.get_running_loop().time() - began < PACE["lease_seconds"]
    assert not first.leadership.held
    api.away = False
    await until(lambda: first.leads)
    assert first.terms == 2
    await first.stop()


async def test_a_holder_whose_lease_was_taken_stops_at_once() -> None:
    api = MemoryApi()
    first = Candidate(api, "first")
    await until(lambda: first.leads)
    await api.patch(LEASES, "shop", "anyloop-controller", {"spec": {"holderIdentity": "thief", "renewTime": "now"}})
    await until(lambda: not first.leads)
    assert holder(api) == "thief"
    await until(lambda: first.leads)  # the thief never renews
    assert api.objects["leases", "shop", "anyloop-controller"]["spec"]["leaseTransitions"] == 1
    await first.stop()


async def test_a_lease_that_was_deleted_is_made_again_and_the_holder_goes_on() -> None:
    api = MemoryApi()
    first = Candidate(api, "first")
    await until(lambda: first.leads)
    api.remove(LEASES, "shop", "anyloop-controller")
    await until(lambda: ("leases", "shop", "anyloop-controller") in api.objects)
    assert first.leads
    assert first.terms == 1
    await first.stop()


async def test_of_many_that_begin_together_one_leads() -> None:
    api = MemoryApi()
    all_of_them = [Candidate(api, f"number {number}") for number in range(5)]
    await until(lambda: any(one.leads for one in all_of_them))
    await asyncio.sleep(0.2)
    assert sum(one.leads for one in all_of_them) == 1
    for one in all_of_them:
        await one.stop()


async def test_the_error_of_the_leading_work_is_raised_and_the_lease_is_given_back() -> None:
    api = MemoryApi()

    async def fails() -> None:
        raise ValueError("it cannot go on")

    settings = ControllerSettings(identity="me", _env_file=None, **PACE)  # type: ignore[call-arg,arg-type]
    with pytest.raises(ValueError, match="cannot go on"):
        await Leadership(api, settings, "shop").run(fails)
    assert holder(api) == ""


def test_times_that_let_two_act_at_once_are_refused() -> None:
    with pytest.raises(ValueError, match="two controllers could act at once"):
        ControllerSettings(lease_seconds=5, renew_seconds=6, _env_file=None)  # type: ignore[call-arg]
