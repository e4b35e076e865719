"""Runs requests on models that live in a Triton server, over its gRPC API.

Every request has a bidirectional stream of its own on one shared HTTP/2 connection: cancelling it cancels that request
in Triton and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.hosts.interface import HostError, ModelHost
from services.hosts.payload import TARGET, TENSOR, pack, unpack
from services.hosts.placement import triton_model, triton_models


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
        done = asyncio.Event()

        async def inputs() -> AsyncIterator[dict[str, Any]]:
            tensor = _tensor({**request, TARGET: model})
            yield {"model_name": triton_model(model), "inputs": [tensor], "outputs": [InferRequestedOutput(TENSOR)]}
            await done.wait()  # a stream whose sending half is closed cannot be told from one that is finished

        responses = self._client.stream_infer(inputs(), stream_timeout=timeout)
        final = False
        try:
            async for result, error in responses:
                if error is not None:
                    raise _host_error(error, model, timeout)
                final = bool(result.get_response().parameters["triton_final_response"].bool_param)
                payload = _payload(result.as_numpy(TENSOR))
                if payload is not None:
                    if "error" in payload:
                        raise HostError.from_payload(payload["error"])
                    yield payload
                if final:
                    return
            raise HostError("UNAVAILABLE", f"Triton ended the stream of {model} early")
        except InferenceServerException as error:
            raise _host_error(error, model, timeout) from error
        except grpc.RpcError as error:
            raise _rpc_error(error, model, timeout) from error
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
        await self._client.close()


def _tensor(request: dict[str, Any]) -> InferInput:
    data = np.frombuffer(pack(request), dtype=np.uint8)
    tensor = InferInput(TENSOR, list(data.shape), "UINT8")
    tensor.set_data_from_numpy(data)
    return tensor


def _payload(data: np.ndarray | None) -> dict[str, Any] | None:
    return unpack(data.tobytes()) if data is not None and data.size else None


def _host_error(error: InferenceServerException, model: str, timeout: float | None) -> HostError:
    status, message = str(error.status() or ""), str(error.message() or error)
    code = status.removeprefix("StatusCode.")
    if code == "DEADLINE_EXCEEDED":
        return HostError(code, f"{model} did not answer within {timeout} s")
    if code in ("UNAVAILABLE", "CANCELLED", "NOT_FOUND"):
        return HostError(code, f"Triton: {message}")
    if "is not found" in message or "unknown model" in message or "is not ready" in message:
        return HostError("UNAVAILABLE", f"Triton does not serve {model} now: {message}")
    return HostError("INTERNAL", f"Triton: {message}")


def _rpc_error(error: grpc.RpcError, model: str, timeout: float | None) -> HostError:
    code = error.code() if hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return HostError("DEADLINE_EXCEEDED", f"{model} did not answer within {timeout} s")
    if code is grpc.StatusCode.UNAVAILABLE:
        return HostError("UNAVAILABLE", f"Triton cannot be reached: {details}")
    return HostError(code.name if code is not None else "INTERNAL", f"Triton: {details}")
