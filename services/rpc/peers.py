"""Who may change a replica: the names that callers' certificates carry, against the ones that are allowed."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any, NoReturn

import grpc

logger = logging.getLogger(__name__)
Handler = Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]]


class PeerInterceptor(grpc.aio.ServerInterceptor):
    """Lets the methods of `service` through to callers whose certificate has a DNS name of `allowed`, and those named
    in `open_to_all` to everybody who got through the handshake. A refused call is logged with who tried what."""

    def __init__(self, service: str, allowed: Collection[str], open_to_all: Collection[str] = ()) -> None:
        self._prefix = f"/{service}/"
        self._allowed = frozenset(allowed)
        self._open = frozenset(self._prefix + method for method in open_to_all)

    async def intercept_service(
        self, continuation: Handler, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(self._prefix) or method in self._open:
            return handler
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(self._guarded_stream(method, handler.unary_stream), **codecs)
        return grpc.unary_unary_rpc_method_handler(self._guarded(method, handler.unary_unary), **codecs)

    def _guarded(self, method: str, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext) -> Any:
            await self._check(method, context)
            return await answer(request, context)

        return guarded

    def _guarded_stream(
        self, method: str, answer: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            await self._check(method, context)
            async for item in answer(request, context):
                yield item

        return guarded

    async def _check(self, method: str, context: grpc.aio.ServicerContext) -> None:
        names = names_of(context)
        if not self._allowed.intersection(names):
            await _refuse(method, names, context)


def names_of(context: grpc.aio.ServicerContext) -> list[str]:
    """The DNS names of the caller's certificate; empty without one."""
    return [name.decode(errors="replace") for name in context.auth_context().get("peer_dns", ())]


async def _refuse(method: str, names: list[str], context: grpc.aio.ServicerContext) -> NoReturn:
    who = ", ".join(names) or "a caller without a name in its certificate"
    logger.warning("refused a control call", extra={"method": method, "peer": who, "address": context.peer()})
    await context.abort(
        grpc.StatusCode.PERMISSION_DENIED,
        f"{who} may not call {method}: ANYLOOP_CONTROL_PEERS of this replica names who may",
    )
    raise AssertionError("abort raises")
