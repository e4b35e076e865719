from protos.anyloop.v1 import feedback_pb2 as _feedback_pb2
from protos.anyloop.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResponseEvent(_message.Message):
    __slots__ = ("response_id", "conversation_id", "principal", "messages", "response", "prompt_token_ids", "output_token_ids", "output_logprobs", "sampling", "version_spans", "modalities", "finish_reason", "created_unix_ms", "metadata", "attempt")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    VERSION_SPANS_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    conversation_id: str
    principal: str
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    response: _types_pb2.Message
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_logprobs: _containers.RepeatedScalarFieldContainer[float]
    sampling: _types_pb2.SamplingParams
    version_spans: _containers.RepeatedCompositeFieldContainer[_types_pb2.VersionSpan]
    modalities: _containers.RepeatedScalarFieldContainer[_types_pb2.Modality]
    finish_reason: _types_pb2.FinishReason
    created_unix_ms: int
    metadata: _containers.ScalarMap[str, str]
    attempt: int
    def __init__(self, response_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., principal: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., response: _Optional[_Union[_types_pb2.Message, _Mapping]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., output_logprobs: _Optional[_Iterable[float]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., version_spans: _Optional[_Iterable[_Union[_types_pb2.VersionSpan, _Mapping]]] = ..., modalities: _Optional[_Iterable[_Union[_types_pb2.Modality, str]]] = ..., finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., created_unix_ms: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., attempt: _Optional[int] = ...) -> None: ...

class FeedbackEvent(_message.Message):
    __slots__ = ("feedback_id", "principal", "feedback", "created_unix_ms", "idempotency_key")
    FEEDBACK_ID_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENCY_KEY_FIELD_NUMBER: _ClassVar[int]
    feedback_id: str
    principal: str
    feedback: _feedback_pb2.Feedback
    created_unix_ms: int
    idempotency_key: str
    def __init__(self, feedback_id: _Optional[str] = ..., principal: _Optional[str] = ..., feedback: _Optional[_Union[_feedback_pb2.Feedback, _Mapping]] = ..., created_unix_ms: _Optional[int] = ..., idempotency_key: _Optional[str] = ...) -> None: ...

class CritiqueEvent(_message.Message):
    __slots__ = ("critique_id", "response_id", "conversation_id", "critique", "critique_version", "refined_token_ids", "policy_version", "created_unix_ms")
    CRITIQUE_ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    CRITIQUE_FIELD_NUMBER: _ClassVar[int]
    CRITIQUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    REFINED_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    critique_id: str
    response_id: str
    conversation_id: str
    critique: str
    critique_version: str
    refined_token_ids: _containers.RepeatedScalarFieldContainer[int]
    policy_version: str
    created_unix_ms: int
    def __init__(self, critique_id: _Optional[str] = ..., response_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., critique: _Optional[str] = ..., critique_version: _Optional[str] = ..., refined_token_ids: _Optional[_Iterable[int]] = ..., policy_version: _Optional[str] = ..., created_unix_ms: _Optional[int] = ...) -> None: ...

class CheckpointEvent(_message.Message):
    __slots__ = ("lineage", "version", "parent", "state", "digest", "reason", "decided_by", "created_unix_ms", "report_json")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[CheckpointEvent.State]
        STATE_CANDIDATE: _ClassVar[CheckpointEvent.State]
        STATE_PROMOTED: _ClassVar[CheckpointEvent.State]
        STATE_REJECTED: _ClassVar[CheckpointEvent.State]
        STATE_APPROVED: _ClassVar[CheckpointEvent.State]
    STATE_UNSPECIFIED: CheckpointEvent.State
    STATE_CANDIDATE: CheckpointEvent.State
    STATE_PROMOTED: CheckpointEvent.State
    STATE_REJECTED: CheckpointEvent.State
    STATE_APPROVED: CheckpointEvent.State
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DECIDED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REPORT_JSON_FIELD_NUMBER: _ClassVar[int]
    lineage: str
    version: str
    parent: str
    state: CheckpointEvent.State
    digest: str
    reason: str
    decided_by: str
    created_unix_ms: int
    report_json: str
    def __init__(self, lineage: _Optional[str] = ..., version: _Optional[str] = ..., parent: _Optional[str] = ..., state: _Optional[_Union[CheckpointEvent.State, str]] = ..., digest: _Optional[str] = ..., reason: _Optional[str] = ..., decided_by: _Optional[str] = ..., created_unix_ms: _Optional[int] = ..., report_json: _Optional[str] = ...) -> None: ...

class AuditEvent(_message.Message):
    __slots__ = ("audit_id", "action", "subject", "actor", "reason", "outcome", "details_json", "host", "created_unix_ms")
    AUDIT_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    DETAILS_JSON_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    audit_id: str
    action: str
    subject: str
    actor: str
    reason: str
    outcome: str
    details_json: str
    host: str
    created_unix_ms: int
    def __init__(self, audit_id: _Optional[str] = ..., action: _Optional[str] = ..., subject: _Optional[str] = ..., actor: _Optional[str] = ..., reason: _Optional[str] = ..., outcome: _Optional[str] = ..., details_json: _Optional[str] = ..., host: _Optional[str] = ..., created_unix_ms: _Optional[int] = ...) -> None: ...
