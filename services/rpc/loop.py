"""The event loop of every service: uvloop where it is installed, for a message costs less on it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")

# Another thread that computes (the outbox on its way to Kafka, an engine) hands the interpreter over after so long when
# the loop has something to do. Python's default of 5 ms is what an answer's end would wait.
_SWITCH_SECONDS = 0.0005


def run(main: Coroutine[Any, Any, Result]) -> Result:
    """`asyncio.run` on the fastest loop there is, which waits for other threads briefly."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
