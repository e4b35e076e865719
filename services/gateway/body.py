"""Request bodies: counted while they stream in, refused before they are held, read once, validated strictly."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.gateway.errors import GatewayError, Status, invalid, too_large, unavailable

Model = TypeVar("Model", bound=BaseModel)
Result = TypeVar("Result")
_INLINE_PARSE_BYTES = 256 * 1024  # larger bodies are parsed off the event loop
_DISCARD_S = 5.0
BODIES_IN_FLIGHT = 8  # whole bodies of the largest size held at the same time, for each transport
_SENTENCES = {
    "extra_forbidden": "unknown field '{param}': remove it, or check its spelling",
    "missing": "missing required field '{param}'",
    "json_invalid": "the body is not valid JSON: {msg}",
}


class BodyLimit:
    """ASGI middleware: one body may hold `limit` bytes, all bodies in flight together `budget` bytes."""

    def __init__(self, app: ASGIApp, limit: int, budget: int) -> None:
        self._app, self._limit, self._budget = app, limit, budget
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._limit:
            await _discard(receive)
            await self._over().response()(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                size = len(message.get("body", b""))
                taken += size
                self._held += size
                if taken > self._limit:
                    await _discard(receive)
                    raise self._over()
                if self._held > self._budget:
                    await _discard(receive)
                    raise unavailable("too many large requests are in flight; try again shortly")
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._held -= taken

    def _over(self) -> GatewayError:
        return too_large(
            f"the body is over {self._limit} bytes; send smaller media, or upload them with POST /v1/media"
        )


async def _discard(receive: Receive) -> None:
    """Reads on without keeping anything: most clients look at the answer only when they have sent all they had."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while (await receive()).get("more_body", False):
                pass


async def read_body(request: Request, timeout_s: float) -> bytes:
    """The whole body. A client that stops sending gets 408 after `timeout_s`."""
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError as error:
        raise GatewayError(
            Status.DEADLINE_EXCEEDED, "the body did not arrive in time; send the request again", http=408
        ) from error
    except ClientDisconnect as error:
        raise GatewayError(Status.CANCELLED, "the client went away") from error


async def read_json(request: Request, model: type[Model], timeout_s: float) -> Model:
    """The body as `model`. Raises GatewayError: 415 not JSON by its content type, 400 naming the first bad field."""
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise GatewayError(
            Status.INVALID_ARGUMENT,
            f"this route takes application/json, not {kind!r}: set the Content-Type header",
            "unsupported_media_type",
            http=415,
        )
    data = await read_body(request, timeout_s)
    if len(data) > _INLINE_PARSE_BYTES:
        return await asyncio.to_thread(parse, model, data)
    return parse(model, data)


async def in_proportion(request: Request, work: Callable[..., Result], *arguments: Any) -> Result:
    """What `work` makes of a body that has been read: off the event loop where the body is large."""
    if len(await request.body()) > _INLINE_PARSE_BYTES:
        return await asyncio.to_thread(work, *arguments)
    return work(*arguments)


def parse(model: type[Model], data: bytes) -> Model:
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise first_error(error) from error


def first_error(error: ValidationError) -> GatewayError:
    """The first finding as one sentence with the path of the field, like `messages[0].content`."""
    finding = error.errors(include_url=False, include_input=False)[0]
    cause = finding.get("ctx", {}).get("error")
    if isinstance(cause, GatewayErrorValue):
        return cause.error
    param = "".join(_path(finding["loc"])).lstrip(".")
    sentence = _SENTENCES.get(finding["type"])
    reason = finding["msg"].removeprefix("Value error, ")
    message = sentence.format(param=param, msg=reason) if sentence else f"{reason[:1].lower()}{reason[1:]}"
    if sentence is None and param:
        message = f"'{param}': {message}"
    code = {"extra_forbidden": "unknown_parameter", "missing": "missing_required_parameter"}.get(finding["type"])
    return invalid(message, param or None, code or "invalid_value")


class GatewayErrorValue(ValueError):
    """Carries a whole GatewayError out of a pydantic validator."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(error.message)
        self.error = error


def _path(location: tuple[int | str, ...]) -> Iterator[str]:
    for step in location:
        if isinstance(step, int):
            yield f"[{step}]"
        elif not step.startswith("·"):  # tags of discriminated unions are no fields
            yield f".{step}"


async def until_disconnect(request: Request, work: Any) -> Any:
    """Awaits `work`; cancels it when the client goes away. The body must have been read before."""
    task = asyncio.ensure_future(work)

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(watch())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise GatewayError(Status.CANCELLED, "the client went away")
    finally:
        for pending in (task, watcher):
            if not pending.done():
                pending.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pending
