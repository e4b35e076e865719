"""The single-modality routes of OpenAI: images from a prompt, and a sound as the model's answer to an input."""

import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.responses import Response

from protos.anyloop.v1 import policy_pb2, types_pb2
from services.gateway.answers import Answer
from services.gateway.body import read_json, until_disconnect
from services.gateway.chat import first_sound, sampling_to_proto, usage
from services.gateway.errors import GatewayError, Status
from services.gateway.generation import answer_all, choices
from services.gateway.keys import Role
from services.gateway.links import MediaLinks, to_base64
from services.gateway.media import MediaDesk
from services.gateway.routes.access import caller_of, json_body, links_of, plane_of
from services.gateway.schemas import ImageRequest, Sampling, SpeechRequest

router = APIRouter()


@router.post("/v1/images/generations", openapi_extra=json_body(ImageRequest), summary="Draw images")
async def images(request: Request) -> Response:
    plane = plane_of(request)
    plane.admit(caller_of(request), Role.GENERATE)
    body = await read_json(request, ImageRequest, plane.settings.request_timeout_s)
    plane.keys.charge_choices(caller_of(request), body.n or 1)
    answers = await _answers(request, body, body.prompt, types_pb2.MODALITY_IMAGE)
    data = [await _image(answer, body, plane.media, links_of(request)) for answer in answers]
    totals = usage(answers)
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": data,
            "output_format": "png",
            "system_fingerprint": answers[0].version,
            "usage": {
                "input_tokens": totals["prompt_tokens"],
                "input_tokens_details": {"image_tokens": 0, "text_tokens": totals["prompt_tokens"]},
                "output_tokens": totals["completion_tokens"],
                "total_tokens": totals["total_tokens"],
            },
        }
    )


@router.post("/v1/audio/speech", openapi_extra=json_body(SpeechRequest), summary="Answer in sound (WAV)")
async def speech(request: Request) -> Response:
    plane = plane_of(request)
    plane.admit(caller_of(request), Role.GENERATE)
    body = await read_json(request, SpeechRequest, plane.settings.request_timeout_s)
    prompt = f"{body.instructions}\n{body.input}" if body.instructions else body.input
    answer = (await _answers(request, body, prompt, types_pb2.MODALITY_AUDIO))[0]
    sound = first_sound(answer.media)
    if sound is None:
        raise _nothing("sound")
    headers = {"X-Response-Id": answer.response_id, "X-Policy-Version": answer.version}
    return Response(await plane.media.read(sound.sha256), media_type=sound.mime_type, headers=headers)


async def _answers(request: Request, body: Sampling, prompt: str, modality: types_pb2.Modality) -> list[Answer]:
    plane = plane_of(request)
    asked = policy_pb2.GenerateRequest(
        conversation_id=body.conversation_id or "",
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text=prompt)])],
        modalities=[modality],
        sampling=sampling_to_proto(body),
        policy_version=plane.pinned_version(body.model),
    )
    requests = choices(await plane.prepare(asked, caller_of(request)), body.n or 1)
    answers: list[Answer] = await until_disconnect(request, answer_all(plane, requests))
    return answers


async def _image(answer: Answer, body: ImageRequest, media: MediaDesk, links: MediaLinks) -> dict[str, Any]:
    picture = next((ref for ref in answer.media if ref.modality == types_pb2.MODALITY_IMAGE), None)
    if picture is None:
        raise _nothing("image")
    image: dict[str, Any] = {"response_id": answer.response_id}
    if body.response_format == "b64_json":
        image["b64_json"] = to_base64(await media.read(picture.sha256))
    else:
        image["url"] = links.url(picture.sha256)
    return image


def _nothing(what: str) -> GatewayError:
    return GatewayError(Status.INTERNAL, f"the model answered without {what}; ask again", "no_media")
