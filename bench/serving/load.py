"""The load: so many clients, each asking again as soon as its answer has ended. In every contender the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

Asked = TypeVar("Asked")
Got = TypeVar("Got")


async def closed_loop(prompts: Sequence[Asked], streams: int, ask: Callable[[int, Asked], Awaitable[Got]]) -> list[Got]:
    """`ask(client, prompt)`: client `c` of `streams` asks prompts `c`, `c + streams`, ... one after another.

    The answers come client by client, whichever ended first.
    """

    async def client(number: int) -> list[Got]:
        return [await ask(number, prompt) for prompt in prompts[number::streams]]

    return [got for answers in await asyncio.gather(*map(client, range(streams))) for got in answers]
