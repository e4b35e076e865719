"""What every gRPC call leaves behind: counts, a span, and its ids in the log lines of whoever works on it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc

from anyloop.telemetry import context as request_context
from anyloop.telemetry import metrics, tracing
from anyloop.telemetry.logs import ACCESS
from services.rpc.errors import as_rpc_error

OWN = "anyloop.v1."
# Whose failures are those of a model: with anyloop_request_success_total they make the error rate of a replica.
ANSWERS = {
    "anyloop.v1.PolicyService/Generate": "policy",
    "anyloop.v1.CritiqueService/Critique": "critique",
}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class CallObserver(grpc.aio.ServerInterceptor):
    """Stands inside the interceptor that turns errors into statuses, and sees the errors themselves. Health checks and
    reflection pass unseen. `edge`: the callers are clients, not other services."""

    def __init__(self, *, edge: bool = False) -> None:
        self._edge = edge

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        name = handler_call_details.method.lstrip("/")
        if handler is None or handler.request_streaming or not name.startswith(OWN):
            return handler
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(name, handler.unary_stream), **codecs)
        return grpc.unary_unary_rpc_method_handler(self._unary(name, handler.unary_unary), **codecs)

    def _unary(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def observed(request: Any, context: grpc.aio.ServicerContext) -> Any:
            call = _Call(name, context, self._edge)
            try:
                answer = await method(request, context)
            except BaseException as error:
                call.end(error)
                raise
            call.end(None)
            return answer

        return observed

    def _stream(self, name: str, method: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
        async def observed(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            call = _Call(name, context, self._edge)
            try:
                async with aclosing(method(request, context)) as answers:
                    async for answer in answers:
                        yield answer
            except BaseException as error:
                call.end(error)
                raise
            call.end(None)

        return observed


class _Call:
    """One call, from its first line to its end. gRPC runs it as a task of its own: what is set here ends with it."""

    def __init__(self, name: str, context: grpc.aio.ServicerContext, edge: bool) -> None:
        self._name, self._context, self._edge = name, context, edge
        self._began = time.monotonic()
        request_context.enter((str(key), value) for key, value in context.invocation_metadata() or ())
        if edge:
            request_context.request_id()
        service, _, method = name.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
        self._span = tracing.start(name, kind="server", attributes=attributes)
        request_context.set_traceparent(self._span.traceparent)

    def end(self, error: BaseException | None) -> None:
        code, seconds = code_of(error, self._context), time.monotonic() - self._began
        service, _, method = self._name.removeprefix(OWN).partition("/")
        if self._edge:
            metrics.EDGE_REQUESTS.labels(method, code.name).inc()
        else:
            metrics.RPC_REQUESTS.labels(service, method, code.name).inc()
            metrics.RPC_SECONDS.labels(service, method).observe(seconds)
            model = ANSWERS.get(self._name)
            if model and code is not grpc.StatusCode.OK:
                metrics.REQUEST_FAILURES.labels(model, code.name).inc()
        self._span.set({"rpc.grpc.status_code": code.value[0]})
        self._span.end(None if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED) else f"{code.name}: {error}")
        if ACCESS.isEnabledFor(logging.INFO):
            ACCESS.info("%s %s", self._name, code.name, extra={"code": code.name, "seconds": round(seconds, 4)})


def code_of(error: BaseException | None, context: grpc.aio.ServicerContext) -> grpc.StatusCode:
    """The status with which a call ends that ended so."""
    if error is None:
        return grpc.StatusCode.OK
    if isinstance(error, grpc.aio.AbortError):
        said = context.code()
        return said if isinstance(said, grpc.StatusCode) else _CODES.get(said, grpc.StatusCode.UNKNOWN)
    if isinstance(error, Exception):
        return as_rpc_error(error).code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left = context.time_remaining()
        late = left is not None and left <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return grpc.StatusCode.UNKNOWN
