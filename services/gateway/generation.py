"""One REST request with `n` choices is `n` requests to the policy service, run together and cancelled together.

Of the answers that its principal may have at the same time it takes `n` at once, until the last has ended: taken one by
one, the first would be generated in vain where the last finds no place.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from protos.anyloop.v1 import policy_pb2
from services.gateway.answers import Answer, collect
from services.gateway.dataplane import DataPlane
from services.gateway.response_ids import new_response_id

_PENDING = 64  # events a slow client may leave waiting before its answers wait too


def choices(prepared: policy_pb2.GenerateRequest, n: int) -> list[policy_pb2.GenerateRequest]:
    """Choice 0 is the prepared request; the others have their own ids and following seeds."""
    requests = [prepared]
    for index in range(1, n):
        request = policy_pb2.GenerateRequest()
        request.CopyFrom(prepared)
        request.response_id = new_response_id(prepared.conversation_id)
        if prepared.sampling.HasField("seed"):
            request.sampling.seed = (prepared.sampling.seed + index) % 2**64
        requests.append(request)
    return requests


async def answer_all(plane: DataPlane, requests: list[policy_pb2.GenerateRequest]) -> list[Answer]:
    """Whole answers in the order of `requests`. The first failure cancels the rest and is raised."""

    async def one(request: policy_pb2.GenerateRequest) -> Answer:
        async with aclosing(plane.stream(request, counted=True)) as events:
            return await collect(request.response_id, events)

    with plane.keys.running(requests[0].principal, len(requests)):
        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            await _cancel(tasks)


async def interleave(
    plane: DataPlane, requests: list[policy_pb2.GenerateRequest]
) -> AsyncGenerator[tuple[int, policy_pb2.GenerateResponse], None]:
    """(choice, event) as they come. The first failure cancels the rest and is raised."""
    if len(requests) == 1:
        async with aclosing(plane.stream(requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    queue: asyncio.Queue[tuple[int, policy_pb2.GenerateResponse] | BaseException | None] = asyncio.Queue(_PENDING)

    async def pump(index: int, request: policy_pb2.GenerateRequest) -> None:
        try:
            async with aclosing(plane.stream(request, counted=True)) as events:
                async for event in events:
                    await queue.put((index, event))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    with plane.keys.running(requests[0].principal, len(requests)):
        tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
        try:
            running = len(tasks)
            while running:
                item = await queue.get()
                if item is None:
                    running -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]] | list[asyncio.Task[Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
