"""The moment by which a call must be answered, handed down to everything that it waits for."""

import time
from dataclasses import dataclass
from typing import Self

import grpc

from services.rpc.errors import RpcError


@dataclass(frozen=True)
class Deadline:
    at: float  # on the monotonic clock

    @classmethod
    def of(cls, context: grpc.aio.ServicerContext, longest_seconds: float) -> Self:
        """The client's deadline; `longest_seconds` from now at the latest."""
        remaining = context.time_remaining()
        return cls(time.monotonic() + (longest_seconds if remaining is None else min(remaining, longest_seconds)))

    def remaining(self) -> float:
        """Seconds left. Raises RpcError DEADLINE_EXCEEDED when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise RpcError(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer began: allow more time"
            )
        return left
