"""Domain errors to gRPC statuses, in one interceptor: servicers raise what they mean and never see a status code."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from anyloop.log.errors import LogError, SpoolFull
from anyloop.media.limits import MediaError
from anyloop.media.store import MediaNotFound, MediaStoreError
from anyloop.registry import CheckpointError
from anyloop.sequence import LayoutError
from services.hosts.interface import HostError

logger = logging.getLogger(__name__)

RETRY_AFTER_MS = 1000
_CODES = {code.name: code for code in grpc.StatusCode}
_RETRY = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
# What another of our servers may tell the client in its own words; anything else is our failure, not the client's.
_PASSED_ON = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
)


class RpcError(Exception):
    """A refusal with its status. `message` says what to do; `retry_after_ms` when to come back."""

    def __init__(self, code: grpc.StatusCode, message: str, retry_after_ms: int = RETRY_AFTER_MS) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_ms = retry_after_ms


def invalid(message: str) -> RpcError:
    return RpcError(grpc.StatusCode.INVALID_ARGUMENT, message)


def as_rpc_error(error: Exception) -> RpcError:
    """The status of any exception. What nobody foresaw is INTERNAL, its details kept for the log."""
    if isinstance(error, RpcError):
        return error
    if isinstance(error, HostError):
        delay = RETRY_AFTER_MS if error.retry_after_s is None else round(1000 * error.retry_after_s)
        return RpcError(_CODES.get(error.code, grpc.StatusCode.INTERNAL), error.message, delay)
    if isinstance(error, MediaNotFound):
        return RpcError(grpc.StatusCode.NOT_FOUND, f"{error}; upload it first")
    if isinstance(error, MediaStoreError):
        return RpcError(grpc.StatusCode.UNAVAILABLE, f"media cannot be stored or read: {error}", 5000)
    if isinstance(error, MediaError | LayoutError):
        return invalid(str(error))
    if isinstance(error, CheckpointError):
        return RpcError(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    if isinstance(error, SpoolFull):
        return RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, f"answers cannot be recorded now: {error}", 5000)
    if isinstance(error, LogError):
        return RpcError(grpc.StatusCode.UNAVAILABLE, f"the event log refused: {error}")
    if isinstance(error, grpc.aio.AioRpcError):
        if error.code() in _PASSED_ON:
            return RpcError(error.code(), error.details() or error.code().name)
        return RpcError(grpc.StatusCode.UNAVAILABLE, f"the decoder service did not answer: {error.details()}")
    if isinstance(error, TimeoutError):
        return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed; allow more time or ask for less")
    return RpcError(grpc.StatusCode.INTERNAL, "this request failed inside the service; its log says why")


async def abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    """Ends the call with the status of `error`."""
    refusal = as_rpc_error(error)
    if refusal.code is grpc.StatusCode.INTERNAL:
        logger.error("a request failed", exc_info=error)
    trailers: tuple[tuple[str, str], ...] = ()
    if refusal.code in _RETRY:
        delay = str(refusal.retry_after_ms)
        trailers = (("retry-after-ms", delay),)
        if refusal.code is _FULL:  # the name that gRPC's own retries obey; from one that is away they go on to the next
            trailers = (*trailers, ("grpc-retry-pushback-ms", delay))
    await context.abort(refusal.code, refusal.message, trailers)
    raise AssertionError("abort returns never")


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every unary and server-streaming method with `abort`."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(_stream(handler.unary_stream), **codecs)
        return grpc.unary_unary_rpc_method_handler(_unary(handler.unary_unary), **codecs)


def _unary(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            return await method(request, context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    return guarded


def _stream(method: Callable[..., Any]) -> Callable[..., AsyncIterator[Any]]:
    async def guarded(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            answer = method(request, context)
            if not hasattr(answer, "__aiter__"):  # a method that writes to the context itself, as health.Watch does
                await answer
                return
            async for item in answer:
                yield item
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await abort(context, error)

    return guarded
