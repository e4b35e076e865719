"""POST /v1/media and GET /v1/media/{sha256}.

Reading needs no key: browsers load media without headers, and a SHA-256 is known only to who has seen it in an answer.
"""

import re

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.gateway.body import read_body
from services.gateway.errors import GatewayError, Status, invalid
from services.gateway.keys import Role
from services.gateway.media import PIECE_BYTES
from services.gateway.routes.access import caller_of, links_of, plane_of

router = APIRouter()
_RANGE = re.compile(r"^bytes=(\d{0,19})-(\d{0,19})$")
_FILE_SCHEMA = {"type": "object", "required": ["file"], "properties": {"file": {"type": "string", "format": "binary"}}}
_UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _FILE_SCHEMA},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


@router.post("/v1/media", openapi_extra=_UPLOAD_BODY, summary="Upload a file: the raw bytes, or a form's field 'file'")
async def upload(request: Request) -> Response:
    plane, links = plane_of(request), links_of(request)
    plane.admit(caller_of(request), Role.GENERATE)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        data = await _form_file(request)
    else:
        data = await read_body(request, plane.settings.request_timeout_s)
    if not data:
        raise invalid(
            "the file is empty; send its bytes as the body, or as the form field 'file'", "file", "empty_file"
        )
    stored = await plane.media.ingest(data)
    return JSONResponse(
        {
            "id": stored.sha256,
            "object": "media",
            "url": links.url(stored.sha256),
            "mime_type": stored.mime_type,
            "modality": str(stored.modality),
            "bytes": stored.size_bytes,
        }
    )


async def _form_file(request: Request) -> bytes:
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise invalid("the form has no field 'file'", "file", "missing_required_parameter")
            return await file.read()
    except MultiPartException as error:
        raise invalid(f"the form cannot be read: {error.message}", "file") from error
    except GatewayError:
        raise
    except Exception as error:
        if getattr(error, "status_code", None) == 400:  # starlette wraps what its parser says
            raise invalid(f"the form cannot be read: {getattr(error, 'detail', error)}", "file") from error
        raise


@router.head("/v1/media/{sha256}", include_in_schema=False)
@router.get("/v1/media/{sha256}", summary="A stored file; ranges for players")
async def download(sha256: str, request: Request) -> Response:
    desk = plane_of(request).media
    stored = await desk.describe(sha256)
    headers = {
        "ETag": f'"{sha256}"',
        "Cache-Control": "public, max-age=31536000, immutable",
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }
    if f'"{sha256}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if request.method == "HEAD":
        return Response(headers={**headers, "Content-Length": str(stored.size_bytes)}, media_type=stored.mime_type)
    size = stored.size_bytes
    span = _span(request.headers.get("range"), request.headers.get("if-range"), f'"{sha256}"', size)
    begin, end = span or (0, size)
    if span is not None:
        headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    status = 200 if span is None else 206
    if size <= PIECE_BYTES:
        return Response((await desk.read(sha256))[begin:end], status, headers, stored.mime_type)
    headers["Content-Length"] = str(end - begin)
    return StreamingResponse(desk.pieces(sha256, begin, end), status, headers, stored.mime_type)


def _span(header: str | None, condition: str | None, etag: str, size: int) -> tuple[int, int] | None:
    """The bytes `[begin, end)` asked for, or None for all of them (RFC 9110: what is not understood is passed over)."""
    match = _RANGE.match(header or "")
    if match is None or match.groups() == ("", "") or (condition and condition != etag):
        return None
    first, last = match.groups()
    if not first:  # the last so many bytes
        begin, end = max(0, size - int(last)), size
    else:
        begin, end = int(first), min(size, int(last) + 1) if last else size
        if last and int(last) < int(first):
            return None
    if begin >= size or begin >= end:
        raise GatewayError(
            Status.OUT_OF_RANGE,
            f"the file has {size} bytes; ask for a range inside",
            "invalid_range",
            "Range",
            http=416,
        )
    return begin, end
