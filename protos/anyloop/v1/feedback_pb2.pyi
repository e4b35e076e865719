from protos.anyloop.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Feedback(_message.Message):
    __slots__ = ("response_id", "conversation_id", "critique", "refinement", "ratings", "label", "preferred_over", "tags", "comparison")
    class RatingsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    CRITIQUE_FIELD_NUMBER: _ClassVar[int]
    REFINEMENT_FIELD_NUMBER: _ClassVar[int]
    RATINGS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_OVER_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    conversation_id: str
    critique: str
    refinement: _containers.RepeatedCompositeFieldContainer[_types_pb2.ContentPart]
    ratings: _containers.ScalarMap[str, float]
    label: bool
    preferred_over: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    comparison: str
    def __init__(self, response_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., critique: _Optional[str] = ..., refinement: _Optional[_Iterable[_Union[_types_pb2.ContentPart, _Mapping]]] = ..., ratings: _Optional[_Mapping[str, float]] = ..., label: _Optional[bool] = ..., preferred_over: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., comparison: _Optional[str] = ...) -> None: ...

class SubmitFeedbackRequest(_message.Message):
    __slots__ = ("feedback", "idempotency_key", "dry_run")
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    feedback: Feedback
    idempotency_key: str
    dry_run: bool
    def __init__(self, feedback: _Optional[_Union[Feedback, _Mapping]] = ..., idempotency_key: _Optional[str] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class SubmitFeedbackResponse(_message.Message):
    __slots__ = ("feedback_id", "duplicate", "early")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    EARLY_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    duplicate: bool
    early: bool
    def __init__(self, feedback_id: _Optional[str] = ..., duplicate: _Optional[bool] = ..., early: _Optional[bool] = ...) -> None: ...
