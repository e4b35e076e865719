"""Payloads in Triton's requests and responses, and Triton's errors in our words."""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, InferResult
from tritonclient.utils import InferenceServerException

from services.hosts.interface import HostError
from services.hosts.payload import TARGET, TENSOR, pack, unpack
from services.hosts.placement import triton_model


def message_to(model: str, payload: dict[str, Any], request_id: str = "") -> dict[str, Any]:
    """What `stream_infer` takes for one request. The responses bear `request_id`."""
    data = np.frombuffer(pack({**payload, TARGET: model}), dtype=np.uint8)
    tensor = InferInput(TENSOR, list(data.shape), "UINT8")
    tensor.set_data_from_numpy(data)
    return {
        "model_name": triton_model(model),
        "request_id": request_id,
        "inputs": [tensor],
        "outputs": [InferRequestedOutput(TENSOR)],
    }


def payload_of(result: InferResult) -> dict[str, Any] | None:
    """The payload of a response; None where it carries none."""
    data = result.as_numpy(TENSOR)
    return unpack(data.tobytes()) if data is not None and data.size else None


def is_final(result: InferResult) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def request_id_of(result: InferResult) -> str:
    return str(result.get_response().id)


def host_error(error: Exception, model: str, timeout: float | None) -> HostError:
    """An exception of Triton's client or of gRPC below it.

    Whoever cancels a call here does not read on, so CANCELLED comes from the other side or from between, and so does
    DEADLINE_EXCEEDED where there is no deadline: what a client may try again.
    """
    if isinstance(error, InferenceServerException):
        return _from_client(error, model, timeout)
    code = error.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None
    details = error.details() if hasattr(error, "details") else str(error)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout is not None:
        return HostError("DEADLINE_EXCEEDED", f"{model} did not answer within {timeout} s")
    if code in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED):
        return HostError("UNAVAILABLE", f"the call to Triton was ended on its way: {details}")
    if code is grpc.StatusCode.UNAVAILABLE:
        return HostError("UNAVAILABLE", f"Triton cannot be reached: {details}")
    return HostError(code.name if code is not None else "INTERNAL", f"Triton: {details}")


def _from_client(error: InferenceServerException, model: str, timeout: float | None) -> HostError:
    status, message = str(error.status() or ""), str(error.message() or error)
    code = status.removeprefix("StatusCode.")
    if code == "DEADLINE_EXCEEDED" and timeout is not None:
        return HostError(code, f"{model} did not answer within {timeout} s")
    if code in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return HostError("UNAVAILABLE", f"the call to Triton was ended on its way: {message}")
    if code in ("UNAVAILABLE", "NOT_FOUND"):
        return HostError(code, f"Triton: {message}")
    if any(words in message for words in ("is not found", "unknown model", "is not ready", "is stopping")):
        return HostError("UNAVAILABLE", f"Triton does not serve {model} now: {message}")
    return HostError("INTERNAL", f"Triton: {message}")
