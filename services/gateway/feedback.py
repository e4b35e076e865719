"""Takes what people say about answers: checked, keyed like its response, in the log before the caller hears yes."""

import asyncio
import hashlib
import math
import re
import time
import uuid

from anyloop.log import FEEDBACK, Event, EventLog, EventTooLarge, LogError, PoisonEvent
from anyloop.telemetry.metrics import FEEDBACK_EVENTS
from protos.anyloop.v1 import events_pb2, feedback_pb2
from services.gateway.errors import GatewayError, Status, invalid, not_found, too_large, unavailable, unknown_fields
from services.gateway.keys import Caller, Role
from services.gateway.ledger import Ledger, TakenFeedback
from services.gateway.media import MediaDesk

SOURCE = "services/gateway"
NAME = re.compile(r"[A-Za-z0-9_.:\-]{1,128}")
_CRITIQUE_CHARS = 8192
_TAGS, _DIMENSIONS, _NAME_CHARS = 32, 16, 64
_NAMESPACE = uuid.UUID("5ecb4f4e-6c0e-4c5a-9c53-7e0a2f9e3d11")


def kinds(feedback: feedback_pb2.Feedback) -> list[str]:
    """What the statement carries, by the names of the metric."""
    carried = {
        "critique": bool(feedback.critique.strip()),
        "refinement": bool(feedback.refinement),
        "rating": bool(feedback.ratings),
        "label": feedback.HasField("label"),
        "preference": bool(feedback.preferred_over),
        "tags": bool(feedback.tags),
    }
    return [kind for kind, present in carried.items() if present]


class FeedbackDesk:
    def __init__(self, log: EventLog, ledger: Ledger, media: MediaDesk) -> None:
        self._log, self._ledger, self._media = log, ledger, media

    async def submit(
        self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        """Raises GatewayError: 400 malformed, 409 the idempotency key was used for something else, 503 log away."""
        check(request)
        feedback = feedback_pb2.Feedback()
        feedback.CopyFrom(request.feedback)
        if feedback.refinement:
            parts = await self._media.resolve(list(feedback.refinement), "refinement")
            del feedback.refinement[:]
            feedback.refinement.extend(parts)
        return await asyncio.to_thread(self._record, request, feedback, caller)

    async def find(self, feedback_id: str, caller: Caller) -> events_pb2.FeedbackEvent:
        """One's own feedback, or anyone's with the role operate. Raises GatewayError (404)."""
        taken = self._ledger.feedback(feedback_id)
        if taken is None or (taken.principal != caller.principal and not caller.may(Role.OPERATE)):
            raise not_found(f"no feedback {feedback_id[:80]!r} was taken by this gateway", "feedback_not_found")
        return await asyncio.to_thread(self._read, taken)

    def _read(self, taken: TakenFeedback) -> events_pb2.FeedbackEvent:
        try:
            for record in self._log.read(FEEDBACK, partition=taken.partition, offset=taken.offset, limit=1):
                message = record.event.unwrap()
                if isinstance(message, events_pb2.FeedbackEvent) and message.feedback_id == taken.feedback_id:
                    return message
        except PoisonEvent:
            pass  # answered below: it is not readable as feedback any more
        except LogError as error:
            raise unavailable(f"the log cannot be read now ({error}); try again") from error
        raise not_found(f"feedback {taken.feedback_id!r} is no longer in the log", "feedback_not_found")

    def _record(
        self, request: feedback_pb2.SubmitFeedbackRequest, feedback: feedback_pb2.Feedback, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        early = self._place(feedback)
        if request.dry_run:
            return feedback_pb2.SubmitFeedbackResponse(early=early)
        key = request.idempotency_key
        # Derived from the key: a repetition carries the same id even when this gateway has forgotten the first one.
        identity = uuid.uuid5(_NAMESPACE, f"{caller.principal}\n{key}") if key else uuid.uuid4()
        feedback_id = f"fb-{identity.hex}"
        body = hashlib.sha256(request.feedback.SerializeToString(deterministic=True)).hexdigest()
        first = self._ledger.feedback(feedback_id) if key else None
        if first is None:
            position = self._append(feedback_id, feedback, caller, key)
            taken = TakenFeedback(feedback_id, caller.principal, body, *position, early=early)
            if self._ledger.add_feedback(taken):
                for kind in kinds(feedback):
                    FEEDBACK_EVENTS.labels(kind).inc()
                return feedback_pb2.SubmitFeedbackResponse(feedback_id=feedback_id, early=early)
            first = self._ledger.feedback(feedback_id)  # the same key came in at the same moment
        if first is not None and first.body != body:
            raise GatewayError(
                Status.ALREADY_EXISTS,
                f"the idempotency key {key!r} was used for other feedback; send this one with a key of its own",
                "idempotency_key_reused",
                "idempotency_key",
            )
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=feedback_id, duplicate=True, early=early)

    def _place(self, feedback: feedback_pb2.Feedback) -> bool:
        """Fills in the conversation, which keys the event; true when the response is not known yet."""
        known = self._ledger.conversation_of(feedback.response_id) if feedback.response_id else ""
        if known and feedback.conversation_id and feedback.conversation_id != known:
            raise invalid(
                f"response {feedback.response_id} belongs to another conversation; leave conversation_id out",
                "conversation_id",
            )
        feedback.conversation_id = known or feedback.conversation_id or feedback.response_id
        return known is None

    def _append(self, feedback_id: str, feedback: feedback_pb2.Feedback, caller: Caller, key: str) -> tuple[int, int]:
        event = events_pb2.FeedbackEvent(
            feedback_id=feedback_id,
            principal=caller.principal,
            feedback=feedback,
            created_unix_ms=time.time_ns() // 1_000_000,
            idempotency_key=key,
        )
        wrapped = Event.wrap(event, key=feedback.conversation_id, source=SOURCE, id=feedback_id)
        try:
            position = self._log.append(FEEDBACK, wrapped)
        except EventTooLarge as error:
            raise too_large(f"the feedback is too large for the log: shorten it ({error})") from error
        except LogError as error:
            if error.retriable:
                raise unavailable(f"the log cannot take feedback now ({error}); send it again") from error
            raise GatewayError(Status.INTERNAL, f"the log refused the feedback: {error}", "log_refused") from error
        return position.partition, position.offset


def check(request: feedback_pb2.SubmitFeedbackRequest) -> None:
    """The rules that both transports share. Raises GatewayError (400)."""
    feedback = request.feedback
    stranger = unknown_fields(request)
    if stranger:
        raise invalid(
            f"unknown field {stranger}; this gateway speaks an older or another anyloop.v1",
            stranger,
            "unknown_parameter",
        )
    if not feedback.response_id and not feedback.conversation_id:
        raise invalid("say what the feedback is about: set response_id or conversation_id", "response_id")
    for name in ("response_id", "conversation_id", "preferred_over"):
        value = getattr(feedback, name)
        if value and not NAME.fullmatch(value):
            raise invalid(f"'{name}' is not an id: 1-128 letters, digits and _ . : -", name)
    if not kinds(feedback):
        raise invalid("nothing is said: set critique, refinement, rating, label, preferred_over or tags")
    if len(feedback.critique) > _CRITIQUE_CHARS:
        raise invalid(f"the critique is over {_CRITIQUE_CHARS} characters; shorten it", "critique")
    for dimension, score in feedback.ratings.items():
        if not dimension or len(dimension) > _NAME_CHARS:
            raise invalid(f"a rating's dimension is a name of 1-{_NAME_CHARS} characters", "rating")
        if not math.isfinite(score) or not 0 <= score <= 1:
            raise invalid(f"the rating '{dimension}' must be between 0 and 1", f"rating.{dimension}")
    if len(feedback.ratings) > _DIMENSIONS or len(feedback.tags) > _TAGS:
        raise invalid(f"at most {_DIMENSIONS} ratings and {_TAGS} tags", "tags")
    if any(not tag or len(tag) > _NAME_CHARS for tag in feedback.tags):
        raise invalid(f"a tag is a name of 1-{_NAME_CHARS} characters", "tags")
    if feedback.preferred_over and not feedback.response_id:
        raise invalid("preferred_over needs response_id, the better one", "response_id")
    if feedback.preferred_over and feedback.preferred_over == feedback.response_id:
        raise invalid("preferred_over names the response itself; name the worse one", "preferred_over")
    if len(request.idempotency_key) > 256:
        raise invalid("an idempotency key has at most 256 characters", "idempotency_key")
