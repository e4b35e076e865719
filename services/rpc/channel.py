"""Channels to other services of the loop."""

from typing import Any

import grpc

_OPTIONS = (
    # A service that restarts is back in seconds; gRPC's default waits up to two minutes before it looks again.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def open_channel(target: str, *options: tuple[str, Any]) -> grpc.aio.Channel:
    """Connects at the first call, and looks for a service that went away every two seconds at least."""
    return grpc.aio.insecure_channel(target, options=(*_OPTIONS, *options))
