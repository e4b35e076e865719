"""POST /v1/feedback and GET /v1/feedback/{id}."""

import asyncio
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from google.protobuf.json_format import MessageToDict
from starlette.requests import Request
from starlette.responses import Response

from protos.anyloop.v1 import feedback_pb2
from services.gateway.body import read_json
from services.gateway.chat import ChatRenderer, content_to_proto
from services.gateway.errors import invalid
from services.gateway.feedback import kinds
from services.gateway.links import MediaLinks
from services.gateway.routes.access import caller_of, json_body, links_of, plane_of
from services.gateway.schemas import MODEL_NAME, FeedbackRequest

router = APIRouter()


@router.post(
    "/v1/feedback", openapi_extra=json_body(FeedbackRequest), summary="Say what is wrong or right with an answer"
)
async def submit(request: Request) -> Response:
    plane, caller = plane_of(request), caller_of(request)
    body = await read_json(request, FeedbackRequest, plane.settings.request_timeout_s)
    header = request.headers.get("idempotency-key")
    if header and body.idempotency_key and header != body.idempotency_key:
        raise invalid("the Idempotency-Key header and idempotency_key differ; send one of them", "idempotency_key")
    asked = await asyncio.to_thread(feedback_to_proto, body, header or "", links_of(request))
    reply = await plane.submit_feedback(asked, caller)
    return JSONResponse(
        {
            "id": reply.feedback_id or None,
            "object": "feedback",
            "response_id": body.response_id,
            "kinds": kinds(asked.feedback),
            "duplicate": reply.duplicate,
            "early": reply.early,
            "dry_run": body.dry_run,
        }
    )


@router.get("/v1/feedback/{feedback_id}", summary="Feedback as it stands in the log")
async def find(feedback_id: str, request: Request) -> Response:
    plane = plane_of(request)
    event = await plane.feedback.find(feedback_id, caller_of(request))
    said = event.feedback
    renderer = ChatRenderer(plane.media, links_of(request), MODEL_NAME)
    found: dict[str, Any] = MessageToDict(said, preserving_proto_field_name=True)
    if said.refinement:
        found["refinement"] = [await renderer.part(part) for part in said.refinement]
    if said.ratings:
        found["rating"] = found.pop("ratings")
    return JSONResponse(
        {
            "id": event.feedback_id,
            "object": "feedback",
            "principal": event.principal,
            "created": event.created_unix_ms // 1000,
            **found,
        }
    )


def feedback_to_proto(body: FeedbackRequest, key: str, links: MediaLinks) -> feedback_pb2.SubmitFeedbackRequest:
    feedback = feedback_pb2.Feedback(
        response_id=body.response_id or "",
        conversation_id=body.conversation_id or "",
        critique=(body.critique or "").strip(),
        preferred_over=body.preferred_over or "",
        comparison=(body.comparison or "").strip(),
        tags=body.tags or [],
    )
    if body.refinement:
        feedback.refinement.extend(content_to_proto(body.refinement, "refinement", links))
    if body.label is not None:
        feedback.label = body.label
    if isinstance(body.rating, dict):
        feedback.ratings.update(body.rating)
    elif body.rating is not None:
        feedback.ratings["overall"] = body.rating
    return feedback_pb2.SubmitFeedbackRequest(
        feedback=feedback, idempotency_key=body.idempotency_key or key, dry_run=body.dry_run
    )
