"""What a model host is: the place where the model programs run, seen from the services.

Two exist: Triton (`triton_host`) and threads of this process (`inprocess_host`). Both run the same program classes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

MODELS = ("policy", "critique", "decoder_image", "decoder_audio", "decoder_video")

# Codes after which the same request may succeed later, on this host or another.
RETRIABLE_CODES = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED"})


class HostError(Exception):
    """A model refused or failed a request. `code` is the name of a gRPC status code; `message` says what to do, and
    `retry_after_s` when it may succeed, where the model could tell."""

    def __init__(
        self, code: str, message: str, retriable: bool | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.retriable = code in RETRIABLE_CODES if retriable is None else retriable
        self.retry_after_s = retry_after_s

    @classmethod
    def from_payload(cls, error: dict[str, Any]) -> HostError:
        """The `error` object of a program's answer."""
        code, message = str(error.get("code", "INTERNAL")), str(error.get("message", "the model gave no reason"))
        delay = error.get("retry_after_s")
        return cls(code, message, retry_after_s=None if delay is None else float(delay))

    def to_payload(self) -> dict[str, Any]:
        error: dict[str, Any] = {"code": self.code, "message": self.message}
        if self.retry_after_s is not None:
            error["retry_after_s"] = self.retry_after_s
        return {"error": error}


class ModelHost(Protocol):
    """Runs requests on named models. Every method may raise HostError."""

    async def ready(self) -> bool:
        """True when every model this host was opened for answers requests. Never raises."""
        ...

    def stream(
        self, model: str, request: dict[str, Any], *, timeout: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answers to one request, as they are produced. Closing the generator (`aclose`) cancels the request.

        `timeout` is in seconds, for the whole stream: when it passes, the request is cancelled and HostError
        DEADLINE_EXCEEDED raised.
        """
        ...

    async def call(
        self,
        model: str,
        request: dict[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        """The one answer to a request that does not stream."""
        ...

    async def close(self) -> None:
        """Ends every stream and releases the models (in process) or the connection (Triton)."""
        ...
