"""Which response each piece of feedback speaks of: for the trainer and for exports.

Pure: the same events give the same join, in whatever order they came.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from protos.anyloop.v1 import events_pb2


@dataclass(frozen=True)
class Joined:
    """Feedback with its response, and with the response it is preferred over where it names one."""

    feedback: events_pb2.FeedbackEvent
    response: events_pb2.ResponseEvent
    worse: events_pb2.ResponseEvent | None = None


def named_responses(event: events_pb2.FeedbackEvent) -> list[str]:
    """The response ids that must be known before `event` can join."""
    feedback = event.feedback
    return [name for name in (feedback.response_id, feedback.preferred_over) if name]


def event_id(response: events_pb2.ResponseEvent) -> str:
    """Under which a response stands in the log: two attempts at one answer are two events."""
    return f"{response.response_id}/{response.attempt}" if response.attempt else response.response_id


def supersedes(response: events_pb2.ResponseEvent, known: events_pb2.ResponseEvent) -> bool:
    """Whether `response`, of the id of `known`, is the one that its client saw. Nobody else's event is, whatever it
    says."""
    return response.attempt > known.attempt and response.principal == known.principal


def join_one(
    event: events_pb2.FeedbackEvent,
    responses: Mapping[str, events_pb2.ResponseEvent],
    conversations: Mapping[str, Sequence[events_pb2.ResponseEvent]],
) -> Joined | None:
    """`event` with its response, or None while something it names is unknown.

    Feedback on a whole conversation speaks of the newest response made before it.
    """
    feedback = event.feedback
    if feedback.response_id:
        response = responses.get(feedback.response_id)
    else:
        earlier = [
            candidate
            for candidate in conversations.get(feedback.conversation_id, ())
            if candidate.created_unix_ms <= event.created_unix_ms
        ]
        response = max(earlier, key=lambda one: (one.created_unix_ms, one.response_id), default=None)
    if response is None:
        return None
    if not feedback.preferred_over:
        return Joined(event, response)
    worse = responses.get(feedback.preferred_over)
    return Joined(event, response, worse) if worse is not None else None


def join(
    feedback: Iterable[events_pb2.FeedbackEvent], responses: Iterable[events_pb2.ResponseEvent]
) -> tuple[list[Joined], list[events_pb2.FeedbackEvent]]:
    """All feedback that has its responses, oldest first, and all that still waits.

    Of events with the same id, or with the same principal and idempotency key, the oldest counts; of attempts at one
    answer the last.
    """
    by_id: dict[str, events_pb2.ResponseEvent] = {}
    for response in sorted(responses, key=_response_order):
        known = by_id.get(response.response_id)
        if known is None or supersedes(response, known):
            by_id[response.response_id] = response
    conversations: dict[str, list[events_pb2.ResponseEvent]] = {}
    for response in by_id.values():
        conversations.setdefault(response.conversation_id, []).append(response)
    joined: list[Joined] = []
    waiting: list[events_pb2.FeedbackEvent] = []
    for event in distinct(feedback):
        found = join_one(event, by_id, conversations)
        if found is None:
            waiting.append(event)
        else:
            joined.append(found)
    return joined, waiting


def distinct(feedback: Iterable[events_pb2.FeedbackEvent]) -> list[events_pb2.FeedbackEvent]:
    """Without repeats, oldest first."""
    seen: set[tuple[str, ...]] = set()
    kept: list[events_pb2.FeedbackEvent] = []
    for event in sorted(feedback, key=lambda one: (one.created_unix_ms, one.feedback_id)):
        marks: set[tuple[str, ...]] = {("id", event.feedback_id)}
        if event.idempotency_key:
            marks.add(("key", event.principal, event.idempotency_key))
        if not marks & seen:
            kept.append(event)
        seen |= marks
    return kept


def _response_order(response: events_pb2.ResponseEvent) -> tuple[int, bytes]:
    return response.created_unix_ms, response.SerializeToString(deterministic=True)
