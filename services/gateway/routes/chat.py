"""POST /v1/chat/completions."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from services.gateway.body import in_proportion, read_json, until_disconnect
from services.gateway.chat import ChatRenderer, chat_to_proto
from services.gateway.generation import answer_all, choices, interleave
from services.gateway.keys import Role
from services.gateway.routes.access import caller_of, json_body, links_of, plane_of
from services.gateway.schemas import ChatRequest
from services.gateway.sse import ChatChunks, EventStream, begin

router = APIRouter()


@router.post("/v1/chat/completions", openapi_extra=json_body(ChatRequest), summary="Answer a conversation")
async def chat_completions(request: Request) -> Response:
    plane, caller, links = plane_of(request), caller_of(request), links_of(request)
    plane.admit(caller, Role.GENERATE)
    chat = await read_json(request, ChatRequest, plane.settings.request_timeout_s)
    plane.keys.charge_choices(caller, chat.n or 1)
    version = plane.pinned_version(chat.model)
    asked = await in_proportion(request, chat_to_proto, chat, links)
    asked.policy_version = version
    requests = choices(await plane.prepare(asked, caller), chat.n or 1)
    renderer = ChatRenderer(
        plane.media,
        links,
        chat.model,
        base64=chat.media_format == "b64",
        wants_audio="audio" in (chat.modalities or ()),
        names=request.app.state.token_names() if chat.logprobs else None,
    )
    if chat.stream:
        include_usage = chat.stream_options is not None and chat.stream_options.include_usage
        chunks = ChatChunks(renderer, [each.response_id for each in requests], include_usage)
        events = interleave(plane, requests)
        begun = await until_disconnect(request, begin(events))
        return EventStream(chunks.encoded(begun), source=events)

    async def whole() -> dict[str, Any]:
        return await renderer.completion(await answer_all(plane, requests))

    return JSONResponse(await until_disconnect(request, whole()))
