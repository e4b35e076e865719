"""A mapped record as the events of the log: two responses, and one statement about each. Pure.

Ids are made of the record's fingerprint and the import's name, so that the same record always makes the same events.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anyloop.datasets.align_anything.mapping import Mapped
from anyloop.datasets.tokens import Content
from anyloop.log import Event
from anyloop.media.store import StoredMedia, to_proto
from anyloop.modality import Modality
from protos.anyloop.v1 import events_pb2, feedback_pb2, types_pb2

SOURCE = "anyloop/import/align-anything"
_MOST_TAGS, _LONGEST_TAG = 32, 64  # as the gateway takes them
_LONGEST_METADATA = 4096  # characters of a kept value; the rest is the event's


@dataclass(frozen=True)
class Origin:
    """Where a record comes from. `identity` names it in every id; `begun_ms`, when the import began, is the time of all
    its responses: rounds that take the oldest feedback first then mix its records by their ids."""

    name: str
    file: str
    index: int
    identity: str
    principal: str
    begun_ms: int

    @property
    def where(self) -> str:
        return f"{self.file}#{self.index}"


@dataclass(frozen=True)
class Readied:
    """Content with everything that needs a store or a model: parts, media, token ids. Empty token ids where this model
    has none, and why."""

    prompt: tuple[Content, ...]
    answers: tuple[tuple[Content, ...], tuple[Content, ...]]
    refinements: tuple[tuple[Content, ...], tuple[Content, ...]]
    media: Mapping[str, StoredMedia]  # by SHA-256
    prompt_tokens: Sequence[int] = ()
    answer_tokens: tuple[Sequence[int], Sequence[int]] = ((), ())
    no_tokens: Mapping[int, str] = field(default_factory=dict)  # answer -> reason


def identity_of(name: str, fingerprint: str) -> str:
    """32 hexadecimal digits for a record under an import's name."""
    return hashlib.sha256(f"{name}\n{fingerprint}".encode()).hexdigest()[:32]


def event_ids(identity: str, mapped: Mapped) -> list[str]:
    """The ids of all events that `build` makes, responses first."""
    said = [_feedback_id(identity, at) for at in (0, 1) if _says(mapped, at)]
    return [_response_id(identity, 0), _response_id(identity, 1), *said]


def build(mapped: Mapped, readied: Readied, origin: Origin) -> tuple[list[Event], list[Event]]:
    """Responses, and feedback, as they go to the log."""
    key = _conversation(origin.identity)
    responses = [_response(mapped, readied, origin, at) for at in (0, 1)]
    feedback = [_feedback(mapped, readied, origin, at) for at in (0, 1) if _says(mapped, at)]
    return (
        [Event.wrap(one, key=key, source=SOURCE, id=one.response_id) for one in responses],
        [Event.wrap(one, key=key, source=SOURCE, id=one.feedback_id) for one in feedback],
    )


def said_kinds(mapped: Mapped) -> list[str]:
    """What the record's feedback carries, once for each time, by the names of the gateway's metric."""
    kinds = []
    for at, answer in enumerate(mapped.answers):
        carried = {
            "critique": bool(answer.critique),
            "refinement": bool(answer.refinement),
            "rating": bool(answer.ratings),
            "preference": mapped.preferred == at,
            "comparison": mapped.preferred == at and bool(mapped.comparison),
            "tags": bool(answer.better_in),
        }
        kinds += [kind for kind, present in carried.items() if present]
    return kinds


def _response(mapped: Mapped, readied: Readied, origin: Origin, at: int) -> events_pb2.ResponseEvent:
    parts, tokens = readied.answers[at], readied.answer_tokens[at]
    metadata = {"imported_from": origin.name, "record": origin.where, "subtask": mapped.subtask}
    if mapped.answers[at].model:
        metadata["model"] = mapped.answers[at].model
    if reason := readied.no_tokens.get(at):
        metadata["no_tokens"] = reason
    metadata |= {name: text[:_LONGEST_METADATA] for name, text in mapped.kept.items()}
    return events_pb2.ResponseEvent(
        response_id=_response_id(origin.identity, at),
        conversation_id=_conversation(origin.identity),
        principal=origin.principal,
        messages=[_message(types_pb2.ROLE_USER, readied.prompt, readied.media)],
        response=_message(types_pb2.ROLE_ASSISTANT, parts, readied.media),
        prompt_token_ids=readied.prompt_tokens if tokens else [],
        output_token_ids=tokens,
        modalities=[_MODALITIES[one] for one in dict.fromkeys(part.modality for part in parts)],
        finish_reason=types_pb2.FINISH_REASON_STOP,
        created_unix_ms=origin.begun_ms,
        metadata=metadata,
    )


def _feedback(mapped: Mapped, readied: Readied, origin: Origin, at: int) -> events_pb2.FeedbackEvent:
    answer = mapped.answers[at]
    said = feedback_pb2.Feedback(
        response_id=_response_id(origin.identity, at),
        conversation_id=_conversation(origin.identity),
        critique=answer.critique,
        refinement=[_part(one, readied.media) for one in readied.refinements[at]],
        ratings=dict(answer.ratings),
        tags=[f"{dimension}:better"[:_LONGEST_TAG] for dimension in answer.better_in[:_MOST_TAGS]],
    )
    if mapped.preferred == at:
        said.preferred_over = _response_id(origin.identity, 1 - at)
        said.comparison = mapped.comparison
    return events_pb2.FeedbackEvent(
        feedback_id=_feedback_id(origin.identity, at),
        principal=f"{origin.principal}:{mapped.annotator}" if mapped.annotator else origin.principal,
        feedback=said,
        created_unix_ms=origin.begun_ms + 1,
        idempotency_key=f"{origin.name}:{origin.identity}:{at + 1}",
    )


def _says(mapped: Mapped, at: int) -> bool:
    answer = mapped.answers[at]
    carried = (answer.critique, answer.refinement, answer.ratings, answer.better_in, mapped.preferred == at)
    return any(bool(one) for one in carried)


def _message(role: Any, parts: Sequence[Content], media: Mapping[str, StoredMedia]) -> types_pb2.Message:
    return types_pb2.Message(role=role, parts=[_part(one, media) for one in parts])


def _part(part: Content, media: Mapping[str, StoredMedia]) -> types_pb2.ContentPart:
    if part.modality is Modality.TEXT:
        return types_pb2.ContentPart(text=part.text)
    return types_pb2.ContentPart(media=to_proto(media[part.sha256]))


def _conversation(identity: str) -> str:
    return f"aa-{identity}"


def _response_id(identity: str, at: int) -> str:
    return f"aa-{identity}-{at + 1}"


def _feedback_id(identity: str, at: int) -> str:
    return f"fb-aa-{identity}-{at + 1}"


_MODALITIES = {
    Modality.TEXT: types_pb2.MODALITY_TEXT,
    Modality.IMAGE: types_pb2.MODALITY_IMAGE,
    Modality.AUDIO: types_pb2.MODALITY_AUDIO,
    Modality.VIDEO: types_pb2.MODALITY_VIDEO,
}
