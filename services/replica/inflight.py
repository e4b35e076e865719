"""The requests that run on this replica: admitted while it serves, each a task of its own, all awaited by a drain."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import grpc

from services.hosts.drain_rate import DrainRate
from services.rpc.errors import RpcError

Item = TypeVar("Item")
Send = Callable[[Item], None]


class InFlight:
    """At most `limit` requests; none before `open()` nor after `drain()` has begun.

    With the limit at the engine's slots plus its queue, the engine's own, fair refusal comes first: this one bounds
    what has not reached the engine yet, or has left it and is being recorded.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._tasks: set[asyncio.Task[None]] = set()
        self._rate = DrainRate()
        self._open = False
        self.draining = False

    @property
    def running(self) -> int:
        return len(self._tasks)

    def open(self) -> None:
        self._open = True

    def start(self, work: Callable[[], Coroutine[Any, Any, None]]) -> "asyncio.Task[None]":
        """Runs `work` as a task. Raises RpcError: UNAVAILABLE when not serving, RESOURCE_EXHAUSTED when full."""
        if self.draining:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "this replica is draining: send the request to another one")
        if not self._open:
            raise RpcError(grpc.StatusCode.UNAVAILABLE, "this replica has no verified weights yet: try again shortly")
        if len(self._tasks) >= self._limit:
            seconds = self._rate.seconds_for(len(self._tasks))
            raise RpcError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._limit} requests are in work here, the most allowed: try again in {seconds:.0f} s",
                round(1000 * seconds),
            )
        if not self._tasks:
            self._rate.begin()
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._rate.leave()

    async def drain(self, patience: float) -> int:
        """Admits nothing more and waits for what runs; after `patience` seconds cancels it. Returns how many it cut."""
        self.draining = True
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(set(self._tasks), timeout=patience)
        for task in late:
            cancel_once(task)
        if late:
            await asyncio.wait(late)
        return len(late)


def cancel_once(task: "asyncio.Task[None]") -> None:
    """A second cancellation would interrupt the clean-up of the first: the logging of what was generated."""
    if not task.done() and not task.cancelling():
        task.cancel()


async def relay(
    context: grpc.aio.ServicerContext, inflight: InFlight, work: Callable[[Send[Item]], Awaitable[None]]
) -> AsyncGenerator[Item, None]:
    """Yields what `work` sends, and raises what it raises.

    The work is a task of its own, cancelled when the call ends for whatever reason: its clean-up then runs to the end,
    also when the client is gone and nobody reads this generator any more.
    """
    items: asyncio.Queue[Item | None] = asyncio.Queue()

    async def run() -> None:
        await work(items.put_nowait)

    task = inflight.start(run)
    task.add_done_callback(lambda _: items.put_nowait(None))  # also when it is cancelled before its first line
    context.add_done_callback(lambda _: cancel_once(task))
    try:
        while (item := await items.get()) is not None:
            yield item
        await _result(task)
    finally:
        cancel_once(task)


async def _result(task: "asyncio.Task[None]") -> None:
    await asyncio.wait([task])
    if task.cancelled():  # by a drain whose patience ended; a client that cancelled does not hear this
        raise RpcError(grpc.StatusCode.UNAVAILABLE, "this replica shut down before the answer was complete: retry")
    task.result()
