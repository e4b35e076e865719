"""Models, health, metrics, the state of the loop, and the console."""

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.errors import not_found
from services.gateway.keys import Role
from services.gateway.routes.access import caller_of, plane_of

router = APIRouter()
CONSOLE = Path(__file__).parents[1] / "console.html"


@router.get("/v1/models", summary="What may stand in `model`")
async def models(request: Request) -> Response:
    caller_of(request)
    return JSONResponse(
        {"object": "list", "data": [_model(request, name) for name in await plane_of(request).models()]}
    )


@router.get("/v1/models/{model}", summary="One model")
async def model(model: str, request: Request) -> Response:
    caller_of(request)
    if model not in await plane_of(request).models():
        raise not_found(f"no model {model!r} is served; GET /v1/models lists them", "model_not_found", "model")
    return JSONResponse(_model(request, model))


def _model(request: Request, name: str) -> dict[str, object]:
    created: int = request.app.state.started_unix
    return {"id": name, "object": "model", "created": created, "owned_by": "anyloop"}


@router.get("/v1/loop", summary="What serves, what was promoted, how much was said")
async def loop(request: Request) -> Response:
    caller_of(request)
    return JSONResponse(await plane_of(request).loop_status())


@router.get("/health", summary="The process lives")
async def health() -> Response:
    return JSONResponse({"status": "ok"})


@router.get("/ready", summary="Requests would be answered")
async def ready(request: Request) -> Response:
    problems = await plane_of(request).problems()
    if problems:
        return JSONResponse({"status": "not ready", "reasons": problems}, 503, {"Retry-After": "1"})
    degraded = plane_of(request).degraded()
    return JSONResponse({"status": "ready", **({"degraded": degraded} if degraded else {})})


@router.get("/metrics", summary="Prometheus metrics of this process (role operate)")
async def metrics(request: Request) -> Response:
    """They tell how much whom is asked for: not for everybody on a public port."""
    plane = plane_of(request)
    if plane.settings.public_metrics == "off":
        raise not_found("metrics are not served here: scrape the metrics port", "metrics_off")
    if plane.settings.public_metrics == "operate":
        plane.keys.require(caller_of(request), Role.OPERATE)
    return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})


@router.get("/", include_in_schema=False)
async def console(request: Request) -> Response:
    origin = plane_of(request).settings.public_url.rstrip("/")
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
        f"img-src 'self' data: blob: {origin}; media-src 'self' data: blob: {origin}; "
        "frame-ancestors 'none'; base-uri 'none'"
    )
    return Response(
        CONSOLE.read_bytes(),
        media_type="text/html",
        headers={
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        },
    )
