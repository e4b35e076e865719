"""Runs requests on models that live in a Triton server, over its gRPC API.

Generations share a session with their model; every other request has a bidirectional stream of its own on the same
HTTP/2 connection: cancelling it cancels that request in Triton and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.hosts.interface import HostError, ModelHost
from services.hosts.placement import triton_models
from services.hosts.triton_messages import host_error, is_final, message_to, payload_of
from services.hosts.triton_session import TritonSession


class TritonHost(ModelHost):
    def __init__(self, url: str, models: Sequence[str]) -> None:
        self._url = url
        self._models = tuple(models)
        options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", 1000),  # gRPC's own reaches 2 minutes; Triton restarts in seconds
        ]
        self._client = InferenceServerClient(url, channel_args=options)
        self._sessions: dict[str, TritonSession] = {}

    async def ready(self) -> bool:
        try:
            async with asyncio.timeout(5.0):
                for name in triton_models(self._models):
                    if not await self._client.is_model_ready(name):
                        return False
            return True
        except (InferenceServerException, TimeoutError, grpc.RpcError):
            return False

    async def stream(
        self,
        model: str,
        request: dict[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncGenerator[dict[str, Any], None]:
        if model not in self._models:
            raise HostError("NOT_FOUND", f"model {model!r} is not open here (open: {', '.join(self._models)})")
        if request.get("op") == "generate":
            answers = self._session(model).generate(request, timeout)
        else:
            answers = self._alone(model, request, timeout)
        async with contextlib.aclosing(answers):
            async for answer in answers:
                yield answer

    def _session(self, model: str) -> TritonSession:
        """The one that is open, or a new one: Triton has been away, or there was nothing to do for a while."""
        session = self._sessions.get(model)
        if session is None or session.ended:
            session = self._sessions[model] = TritonSession(self._client, model)
        return session

    async def _alone(
        self,
        model: str,
        request: dict[str, Any],
        timeout: float | None,  # noqa: ASYNC109
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answers to a request that has a gRPC stream of its own."""
        done = asyncio.Event()

        async def inputs() -> AsyncIterator[dict[str, Any]]:
            yield message_to(model, request)
            await done.wait()  # a stream whose sending half is closed cannot be told from one that is finished

        responses = self._client.stream_infer(inputs(), stream_timeout=timeout)
        try:
            async for result, error in responses:
                if error is not None:
                    raise host_error(error, model, timeout)
                payload = payload_of(result)
                if payload is not None:
                    if "error" in payload:
                        raise HostError.from_payload(payload["error"])
                    yield payload
                if is_final(result):
                    return
            raise HostError("UNAVAILABLE", f"Triton ended the stream of {model} early")
        except (InferenceServerException, grpc.RpcError) as error:
            raise host_error(error, model, timeout) from error
        finally:
            done.set()
            responses.cancel()

    async def call(
        self,
        model: str,
        request: dict[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> dict[str, Any]:
        async with contextlib.aclosing(self.stream(model, request, timeout=timeout)) as answers:
            async for answer in answers:
                return answer
        raise HostError("INTERNAL", f"{model} gave no answer")

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()
        await self._client.close()
