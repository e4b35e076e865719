"""An operator's change of weights whose caller goes away, against a host in memory."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from services.replica.promotions import Promotions


class Weights:
    """A host that takes its time to change."""

    lineage = "policy"

    def __init__(self) -> None:
        self.serving = "v1"
        self.begun = asyncio.Event()
        self.go_on = asyncio.Event()
        self.failure: Exception | None = None

    async def state(self) -> Any:
        return SimpleNamespace(serving=self.serving)

    async def activate(self, version: str, mode: str = "", digest: str = "") -> Any:
        if version != "v1":
            self.begun.set()
            await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        self.serving = version
        return SimpleNamespace(previous="v1")

    async def ready(self) -> bool:
        return True


async def interrupted(promotions: Promotions, weights: Weights) -> None:
    """A call that was cancelled in the middle, as gRPC cancels a handler whose caller went away."""
    call = asyncio.create_task(promotions.activate("v2", "keep"))
    await weights.begun.wait()
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call


@pytest.mark.parametrize("fails", [False, True], ids=["taken", "refused"])
async def test_a_change_whose_caller_goes_away_is_finished_and_the_replica_never_leaves_service(fails: bool) -> None:
    weights = Weights()
    said: list[bool] = []

    async def say(serving: bool) -> None:
        said.append(serving)

    promotions = Promotions(weights, weights, say)  # type: ignore[arg-type]
    promotions.begin_with("v1")
    await promotions.reconcile()
    said.clear()
    await interrupted(promotions, weights)
    weights.failure = RuntimeError("corrupt") if fails else None
    looking = asyncio.create_task(promotions.reconcile())
    weights.go_on.set()
    await looking
    serves = "v1" if fails else "v2"
    assert (promotions.good, promotions.wanted, weights.serving) == (serves, serves, serves)
    assert said
    assert all(said)
