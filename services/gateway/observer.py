"""What every REST request leaves behind: counts, a span, an id in the answer and in the log lines of its way."""

import logging
import time
from contextvars import ContextVar
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from anyloop.telemetry import context, metrics, tracing
from anyloop.telemetry.logs import ACCESS

_LEFT = 499
_PROBED = ("/health", "/ready", "/metrics")  # asked every few seconds by machines: no traces
UNMATCHED = "unmatched"  # no route: a label for each path that somebody tries would fill the memory


@dataclass
class _Outcome:
    status: int = 500  # until an answer begins
    broke: int | None = None
    whole: bool = False
    left: bool = False

    @property
    def code(self) -> int:
        """What the request came to, be it after its headers had said 200."""
        if self.broke is not None:
            return self.broke
        return _LEFT if self.left and not self.whole else self.status


_outcome: ContextVar[_Outcome | None] = ContextVar("anyloop_rest_outcome", default=None)


def broke_off(http_status: int) -> None:
    """A stream ended with an error: the request counts under this status."""
    outcome = _outcome.get()
    if outcome is not None:
        outcome.broke = http_status


class RequestObserver:
    """Around all other middleware. Takes `X-Request-Id` and `traceparent` from the client, and returns the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, outcome = time.monotonic(), _Outcome()
        context.enter((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"])
        request_id = context.request_id().encode()
        _outcome.set(outcome)
        span = tracing.start(scope["method"], kind="server") if scope["path"] not in _PROBED else tracing.NO_SPAN
        context.set_traceparent(span.traceparent)

        async def listen() -> Message:
            message = await receive()
            outcome.left |= message["type"] == "http.disconnect"
            return message

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", request_id)]}
            await send(message)
            outcome.whole |= message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self._app(scope, listen, answer)
        finally:
            self._note(scope, outcome, time.monotonic() - began, span)

    def _note(self, scope: Scope, outcome: _Outcome, seconds: float, span: tracing.Span) -> None:
        route, method, code = route_of(scope), scope["method"], outcome.code
        metrics.HTTP_REQUESTS.labels(route, method, str(code)).inc()
        metrics.HTTP_SECONDS.labels(route).observe(seconds)
        span.rename(f"{method} {route}")
        span.set({"http.request.method": method, "http.route": route, "http.response.status_code": code})
        span.end(f"status {code}" if code >= 500 else None)
        if code >= 500 and route.startswith("/v1/"):  # not each time that somebody asks whether it is ready
            logging.getLogger(__name__).warning("%s %s came to %d", method, route, code)
        if ACCESS.isEnabledFor(logging.INFO):
            extra = {"method": method, "route": route, "code": code, "seconds": round(seconds, 4)}
            ACCESS.info("%s %s %d", method, scope["path"], code, extra=extra)


def route_of(scope: Scope) -> str:
    """The route's template, such as `/v1/media/{sha256}`."""
    return getattr(scope.get("route"), "path", None) or UNMATCHED
