"""A service is as ready as its model host: it waits for it at the start, and follows it afterwards."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from services.hosts.interface import ModelHost

logger = logging.getLogger(__name__)


async def wait_for_host(host: ModelHost, poll_seconds: float = 0.1) -> None:
    """Returns when every model of the host answers; says every ten seconds that it still waits."""
    loop = asyncio.get_running_loop()
    said = loop.time()
    while not await host.ready():
        if loop.time() - said >= 10:
            said = loop.time()
            logger.warning("waiting for the model host; is it running, and are its models loaded?")
        await asyncio.sleep(poll_seconds)


async def watch_host(
    host: ModelHost, set_serving: Callable[[bool], Awaitable[None]], poll_seconds: float = 2.0
) -> None:
    """Keeps health in step with the host: NOT_SERVING while its models are away. Runs until cancelled."""
    was: bool | None = None
    while True:
        ready = await host.ready()
        if ready != was:
            await set_serving(ready)
            if was is not None:
                logger.warning("the model host is %s", "back" if ready else "away")
        was = ready
        await asyncio.sleep(poll_seconds)
