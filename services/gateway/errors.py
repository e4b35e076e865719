"""What can go wrong at the edge, with a status for both transports and a sentence that says what to do."""

import json
import math
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from starlette.requests import Request
from starlette.responses import Response

from protos.anyloop.v1 import types_pb2

Status = grpc.StatusCode

# One table for every gRPC status: HTTP status and OpenAI error type. 499 is the customary "client closed request".
HTTP_STATUS: dict[grpc.StatusCode, tuple[int, str]] = {
    Status.INVALID_ARGUMENT: (400, "invalid_request_error"),
    Status.FAILED_PRECONDITION: (400, "invalid_request_error"),
    Status.OUT_OF_RANGE: (400, "invalid_request_error"),
    Status.UNAUTHENTICATED: (401, "authentication_error"),
    Status.PERMISSION_DENIED: (403, "permission_error"),
    Status.NOT_FOUND: (404, "not_found_error"),
    Status.ALREADY_EXISTS: (409, "conflict_error"),
    Status.ABORTED: (409, "conflict_error"),
    Status.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    Status.CANCELLED: (499, "client_closed_request"),
    Status.UNKNOWN: (500, "server_error"),
    Status.INTERNAL: (500, "server_error"),
    Status.DATA_LOSS: (500, "server_error"),
    Status.UNIMPLEMENTED: (501, "server_error"),
    Status.UNAVAILABLE: (503, "server_error"),
    Status.DEADLINE_EXCEEDED: (504, "server_error"),
}
PUSHBACK = "grpc-retry-pushback-ms"
RETRY_HEADERS = ("retry-after", "retry-delay-seconds")


@dataclass
class GatewayError(Exception):
    """One refusal. `http` overrides the table where HTTP has a finer status (413, 415); `param` names the field."""

    status: grpc.StatusCode
    message: str
    code: str | None = None
    param: str | None = None
    http: int | None = None
    retry_after_s: float | None = None

    def __str__(self) -> str:
        return self.message

    @property
    def http_status(self) -> int:
        return self.http or HTTP_STATUS[self.status][0]

    @property
    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        kind = "invalid_request_error" if self.http else HTTP_STATUS[self.status][1]
        code = self.code or self.status.name.lower()
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        headers = {}
        if self.http_status in (429, 503):  # Retry-After counts whole seconds, at least one
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s or 1)))
        if self.http_status in (408, 413):  # what is left of the body is not read
            headers["Connection"] = "close"
        if self.http_status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> Response:
        return Response(json.dumps(self.body), self.http_status, self.headers, "application/json")

    @property
    def trailers(self) -> tuple[tuple[str, str], ...]:
        """Trailing gRPC metadata: when to try again."""
        if self.status not in (Status.RESOURCE_EXHAUSTED, Status.UNAVAILABLE):
            return ()
        delay = max(0.0, self.retry_after_s or 1.0)
        return ((PUSHBACK, str(round(delay * 1000))), ("retry-after", str(max(1, math.ceil(delay)))))


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> GatewayError:
    return GatewayError(Status.INVALID_ARGUMENT, message, code, param)


def unsupported(param: str, way_out: str) -> GatewayError:
    """A parameter that OpenAI knows and this model cannot honour."""
    return invalid(f"'{param}' is not supported by this model: {way_out}", param, "unsupported_parameter")


def not_found(message: str, code: str = "not_found", param: str | None = None) -> GatewayError:
    return GatewayError(Status.NOT_FOUND, message, code, param)


def too_large(message: str) -> GatewayError:
    return GatewayError(Status.INVALID_ARGUMENT, message, "request_too_large", http=413)


def unavailable(message: str, retry_after_s: float = 1.0) -> GatewayError:
    return GatewayError(Status.UNAVAILABLE, message, "unavailable", retry_after_s=retry_after_s)


def from_rpc(error: grpc.aio.AioRpcError) -> GatewayError:
    """An upstream failure as the client should see it. Details of internal failures stay in the log."""
    status = error.code()
    if status in (Status.UNKNOWN, Status.INTERNAL, Status.DATA_LOSS):
        return GatewayError(Status.INTERNAL, "the policy service failed on this request; try again", "internal")
    details = error.details() or status.name.lower()
    if status is Status.UNAVAILABLE:
        details = f"no policy replica could take the request ({details}); try again shortly"
    param = details.split(" ", 1)[0] if status is Status.INVALID_ARGUMENT else ""
    if param not in types_pb2.SamplingParams.DESCRIPTOR.fields_by_name:  # such a refusal begins with the field's name
        return GatewayError(status, details, retry_after_s=_retry_delay(error))
    return invalid(details, param)


def _retry_delay(error: grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        try:
            if key == PUSHBACK:
                return float(value) / 1000
            if key in RETRY_HEADERS:
                return float(value)
        except ValueError:
            continue
    return None


def unknown_fields(message: Message, path: str = "") -> str | None:
    """The path of the first field in `message` that its .proto does not have, or None."""
    for field in UnknownFieldSet(message):
        return f"{path}#{field.field_number}"
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None or descriptor.message_type.GetOptions().map_entry:
            continue
        for index, item in enumerate(value if _is_repeated(value) else (value,)):
            found = unknown_fields(
                item, f"{path}{descriptor.name}[{index}]." if _is_repeated(value) else f"{path}{descriptor.name}."
            )
            if found:
                return found
    return None


def _is_repeated(value: Any) -> bool:
    return not isinstance(value, Message)


async def gateway_error_handler(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return error.response()
