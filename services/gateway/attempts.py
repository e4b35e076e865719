"""One more attempt for an answer that broke off before anybody saw a word of it."""

import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import grpc

from protos.anyloop.v1 import policy_pb2


async def answered(
    ask: Callable[[float, int], Any], seconds: float
) -> AsyncGenerator[policy_pb2.GenerateResponse, None]:
    """The events of the call that `ask(timeout, asked_before)` begins, within `seconds` altogether.

    gRPC repeats a call until the other side's first headers are here; a replica that dies between them and its first
    token leaves the rest to us. Raises AioRpcError.
    """
    ends = time.monotonic() + seconds
    asked_before = 0
    while True:
        call = ask(max(0.0, ends - time.monotonic()), asked_before)
        begun = False
        try:
            async for event in call:
                begun = True
                yield event
            return
        except grpc.aio.AioRpcError as error:
            if begun or asked_before or error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            asked_before += 1
        finally:
            call.cancel()
