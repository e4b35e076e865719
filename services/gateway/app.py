"""The REST application: routes, limits, and errors in OpenAI's shape."""

import functools
import logging
import time
from collections.abc import Callable

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from anyloop.sequence import Sequencer
from services.gateway.body import BODIES_IN_FLIGHT, BodyLimit
from services.gateway.dataplane import DataPlane
from services.gateway.errors import GatewayError, Status, gateway_error_handler
from services.gateway.logprobs import TokenNames
from services.gateway.observer import RequestObserver
from services.gateway.routes import chat, feedback, generate, media, operations

logger = logging.getLogger(__name__)
_BY_HTTP = {404: Status.NOT_FOUND, 405: Status.UNIMPLEMENTED, 413: Status.INVALID_ARGUMENT}


def create_app(plane: DataPlane) -> FastAPI:
    app = FastAPI(
        title="AnyLoop", description="OpenAI-compatible access to a model that learns from feedback", version="1"
    )
    app.state.plane = plane
    app.state.token_names = _names_once(plane)
    app.state.started_unix = int(time.time())
    for module in (chat, generate, feedback, media, operations):
        app.include_router(module.router)
    limit = plane.settings.max_body_bytes
    app.add_middleware(BodyLimit, limit=limit, budget=limit * BODIES_IN_FLIGHT)
    app.add_middleware(RequestObserver)  # added last: it sees what the others answer
    app.add_exception_handler(GatewayError, gateway_error_handler)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _names_once(plane: DataPlane) -> Callable[[], TokenNames]:
    """Log-probabilities name tokens by their text; the tokenizer is read when the first request wants that."""

    @functools.cache
    def load() -> TokenNames:
        return TokenNames(Sequencer.from_pretrained(plane.settings.model_dir))

    return load


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = {
        404: f"no route {request.method} {request.url.path}; see /docs",
        405: f"{request.url.path} does not take {request.method}; see /docs",
    }.get(error.status_code, str(error.detail))
    status = _BY_HTTP.get(error.status_code, Status.INVALID_ARGUMENT)
    return GatewayError(status, message, http=error.status_code).response()


async def _unexpected(request: Request, error: Exception) -> Response:
    # Starlette re-raises after this answer, so the server logs the traceback.
    return GatewayError(Status.INTERNAL, "the gateway failed on this request; try again", "internal").response()
