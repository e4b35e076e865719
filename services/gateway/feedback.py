"""Takes what people say about answers: checked, keyed like its response, in the outbox before the caller hears yes."""

import asyncio
import contextlib
import contextvars
import dataclasses
import hashlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from anyloop.log import FEEDBACK, Event, EventTooLarge, LogError, PoisonEvent
from anyloop.log.spool import SpooledWriter
from anyloop.telemetry.metrics import FEEDBACK_EVENTS
from protos.anyloop.v1 import events_pb2, feedback_pb2
from services.gateway.errors import GatewayError, Status, invalid, not_found, too_large, unavailable, unknown_fields
from services.gateway.keys import Caller, Role
from services.gateway.ledger import Ledger, LedgerError, TakenFeedback
from services.gateway.media import MediaDesk
from services.gateway.response_ids import NAME, carried_conversation

logger = logging.getLogger(__name__)

SOURCE = "services/gateway"
_CRITIQUE_CHARS = 8192
_TAGS, _DIMENSIONS, _NAME_CHARS = 32, 16, 64
_THREADS = 8  # of its own, so that nothing slow elsewhere holds feedback up; those that wait share one sync
_RETRY_AFTER_S = 5.0
_NAMESPACE = uuid.UUID("5ecb4f4e-6c0e-4c5a-9c53-7e0a2f9e3d11")


def kinds(feedback: feedback_pb2.Feedback) -> list[str]:
    """What the statement carries, by the names of the metric."""
    carried = {
        "critique": bool(feedback.critique.strip()),
        "refinement": bool(feedback.refinement),
        "rating": bool(feedback.ratings),
        "label": feedback.HasField("label"),
        "preference": bool(feedback.preferred_over),
        "comparison": bool(feedback.comparison.strip()),
        "tags": bool(feedback.tags),
    }
    return [kind for kind, present in carried.items() if present]


class FeedbackDesk:
    """Feedback is accepted once it is in the outbox; the log behind that may be away."""

    def __init__(self, outbox: SpooledWriter, ledger: Ledger, media: MediaDesk) -> None:
        self._outbox, self._ledger, self._media = outbox, ledger, media
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="feedback")
        self._busy: set[str] = set()  # ids of feedback that a thread is taking; guarded by _done
        self._done = threading.Condition()

    def recall(self) -> None:
        """Before the outbox starts: a gateway that was killed may have put feedback there without noting that it did,
        and the client that heard nothing sends it again."""
        try:
            for left in self._outbox.latest():
                event = left.unwrap()
                if isinstance(event, events_pb2.FeedbackEvent):
                    self._ledger.add_feedback(TakenFeedback(left.id, event.principal, "", False, left.data))
        except (LedgerError, PoisonEvent, OSError) as error:  # no reason not to serve: repetitions have the same id
            logger.warning("what the outbox has left could not be noted: %s", error)

    def close(self) -> None:
        self._threads.shutdown()

    async def submit(
        self, request: feedback_pb2.SubmitFeedbackRequest, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        """Raises GatewayError: 400 malformed, 409 the idempotency key was used for something else, 503 the outbox or
        its disk is full: then nothing was taken."""
        check(request)
        feedback = feedback_pb2.Feedback()
        feedback.CopyFrom(request.feedback)
        if feedback.refinement:
            parts = await self._media.resolve(list(feedback.refinement), "refinement")
            del feedback.refinement[:]
            feedback.refinement.extend(parts)
        # Not cut short when the client goes away: what was begun is taken and noted, for its repetition.
        return await asyncio.shield(
            asyncio.get_running_loop().run_in_executor(
                self._threads, contextvars.copy_context().run, self._record, request, feedback, caller
            )
        )

    async def find(self, feedback_id: str, caller: Caller) -> events_pb2.FeedbackEvent:
        """One's own feedback, or anyone's with the role operate. Raises GatewayError (404)."""
        try:
            taken = await asyncio.get_running_loop().run_in_executor(self._threads, self._ledger.feedback, feedback_id)
        except LedgerError as error:
            raise _unreadable(error) from error
        if taken is None or (taken.principal != caller.principal and not caller.may(Role.OPERATE)):
            raise not_found(f"no feedback {feedback_id[:80]!r} was taken by this gateway", "feedback_not_found")
        if not taken.event:
            raise not_found(
                f"feedback {taken.feedback_id!r} was taken, and is too old to be kept here; it stands in the log",
                "feedback_not_found",
            )
        return events_pb2.FeedbackEvent.FromString(taken.event)

    def _record(
        self, request: feedback_pb2.SubmitFeedbackRequest, feedback: feedback_pb2.Feedback, caller: Caller
    ) -> feedback_pb2.SubmitFeedbackResponse:
        try:
            if caller.own_answers_only:
                self._refuse_others(feedback, caller.principal)
            early = self._place(feedback)
            if request.dry_run:
                return feedback_pb2.SubmitFeedbackResponse(early=early)
            key = request.idempotency_key
            # Derived from the key: a repetition has the same id even when this gateway has forgotten the first one.
            identity = uuid.uuid5(_NAMESPACE, f"{caller.principal}\n{key}") if key else uuid.uuid4()
            feedback_id = f"fb-{identity.hex}"
            body = hashlib.sha256(request.feedback.SerializeToString(deterministic=True)).hexdigest()
            with self._alone(feedback_id):
                first = self._ledger.feedback(feedback_id) if key else None
                if first is None:
                    self._take(TakenFeedback(feedback_id, caller.principal, body, early, b""), feedback, key)
                    return feedback_pb2.SubmitFeedbackResponse(feedback_id=feedback_id, early=early)
        except LedgerError as error:
            raise _unreadable(error) from error
        if first.body and first.body != body:
            raise GatewayError(
                Status.ALREADY_EXISTS,
                f"the idempotency key {key!r} was used for other feedback; send this one with a key of its own",
                "idempotency_key_reused",
                "idempotency_key",
            )
        return feedback_pb2.SubmitFeedbackResponse(feedback_id=feedback_id, duplicate=True, early=early)

    @contextlib.contextmanager
    def _alone(self, feedback_id: str) -> Iterator[None]:
        """Two requests with the same idempotency key take turns: the second finds what the first has left."""
        with self._done:
            self._done.wait_for(lambda: feedback_id not in self._busy)
            self._busy.add(feedback_id)
        try:
            yield
        finally:
            with self._done:
                self._busy.remove(feedback_id)
                self._done.notify_all()

    def _place(self, feedback: feedback_pb2.Feedback) -> bool:
        """Fills in the conversation, which keys the event; true when the response is not known yet."""
        known = self._ledger.conversation_of(feedback.response_id) if feedback.response_id else ""
        belongs_to = carried_conversation(feedback.response_id) if known is None else known
        if belongs_to and feedback.conversation_id not in ("", belongs_to):
            raise invalid(
                f"response {feedback.response_id} belongs to another conversation; leave conversation_id out",
                "conversation_id",
            )
        feedback.conversation_id = belongs_to or feedback.conversation_id or feedback.response_id
        return known is None

    def _refuse_others(self, feedback: feedback_pb2.Feedback, principal: str) -> None:
        """For a key that may speak of its own answers only. Raises GatewayError (403), the same for what is another's
        and what is unknown: nobody learns which ids exist."""
        named = [feedback.response_id, *([feedback.preferred_over] if feedback.preferred_over else [])]
        if any(not one or self._ledger.principal_of(one) != principal for one in named):
            raise GatewayError(
                Status.PERMISSION_DENIED,
                "this key may speak of answers to itself only, each named by its response_id; one that was given a "
                "moment ago may take a second to be known here",
                "not_your_response",
                "response_id",
            )

    def _take(self, taken: TakenFeedback, feedback: feedback_pb2.Feedback, key: str) -> None:
        event = events_pb2.FeedbackEvent(
            feedback_id=taken.feedback_id,
            principal=taken.principal,
            feedback=feedback,
            created_unix_ms=time.time_ns() // 1_000_000,
            idempotency_key=key,
        )
        wrapped = Event.wrap(event, key=feedback.conversation_id, source=SOURCE, id=taken.feedback_id)
        try:
            self._outbox.put(FEEDBACK, wrapped)
        except EventTooLarge as error:
            raise too_large(f"the feedback is too large for the log: shorten it ({error})") from error
        except LogError as error:
            raise unavailable(f"feedback cannot be taken now ({error}); send it again", _RETRY_AFTER_S) from error
        for kind in kinds(feedback):
            FEEDBACK_EVENTS.labels(kind).inc()
        try:
            self._ledger.add_feedback(dataclasses.replace(taken, event=wrapped.data))
        except LedgerError as error:  # it is taken all the same; a repetition has the same id
            logger.error("feedback %s is taken but cannot be looked up here: %s", taken.feedback_id, error)


def _unreadable(error: LedgerError) -> GatewayError:
    return unavailable(f"{error}; try again", _RETRY_AFTER_S)


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
    for name in ("critique", "comparison"):
        if len(getattr(feedback, name)) > _CRITIQUE_CHARS:
            raise invalid(f"the {name} is over {_CRITIQUE_CHARS} characters; shorten it", name)
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
    if feedback.comparison and not feedback.preferred_over:
        raise invalid("comparison needs preferred_over, the response it compares with", "comparison")
    if len(request.idempotency_key) > 256:
        raise invalid("an idempotency key has at most 256 characters", "idempotency_key")
