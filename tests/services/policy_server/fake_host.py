"""A model host that a test scripts: it can fail, hang, go away and come back empty."""

# ruff: noqa: ASYNC109 - the signatures are those of ModelHost

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from services.hosts.interface import HostError, ModelHost


class FakeHost(ModelHost):
    """Answers `generate` with `script`: dictionaries are sent, floats are slept, exceptions raised."""

    def __init__(self) -> None:
        self.alive = True
        self.script: list[dict[str, Any] | float | Exception] = []
        self.stream_closed = asyncio.Event()
        self.serving = ""
        self.weights: dict[str, str] = {}
        self.activation_errors: list[Exception] = []

    async def ready(self) -> bool:
        return self.alive

    def restart(self) -> None:
        """As a model server that comes back: no weights."""
        self.serving, self.weights, self.alive = "", {}, True

    async def stream(
        self, model: str, request: dict[str, Any], *, timeout: float | None = None
    ) -> AsyncIterator[dict[str, Any]]:
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.stream_closed.set()

    async def call(self, model: str, request: dict[str, Any], *, timeout: float | None = None) -> dict[str, Any]:
        if not self.alive:
            raise HostError("UNAVAILABLE", "the model server is away")
        if request["op"] == "load":
            self.weights[request["version"]] = request["digest"]
            return {"digest": request["digest"], "load_seconds": 0.0}
        if request["op"] == "activate":
            if self.activation_errors:
                raise self.activation_errors.pop(0)
            previous, self.serving = self.serving, request["version"]
            return {"previous": previous, "stall_seconds": 0.0}
        weights = [
            {"version": version, "digest": digest, "serving": version == self.serving, "running_requests": 0}
            for version, digest in self.weights.items()
        ]
        return {
            "serving_version": self.serving,
            "weights": weights,
            "requests_running": 0,
            "requests_waiting": 0,
        }

    async def close(self) -> None:
        self.alive = False
