from protos.anyloop.v1 import scoring_pb2 as _scoring_pb2
from protos.anyloop.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CritiqueRequest(_message.Message):
    __slots__ = ("critique_id", "messages", "response", "sampling", "critique_version", "prompt_token_ids", "response_id", "conversation_id")
    CRITIQUE_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    CRITIQUE_VERSION_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    critique_id: str
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    response: _types_pb2.Message
    sampling: _types_pb2.SamplingParams
    critique_version: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    response_id: str
    conversation_id: str
    def __init__(self, critique_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., response: _Optional[_Union[_types_pb2.Message, _Mapping]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., critique_version: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., response_id: _Optional[str] = ..., conversation_id: _Optional[str] = ...) -> None: ...

class CritiqueResponse(_message.Message):
    __slots__ = ("started", "text", "finished")
    class Started(_message.Message):
        __slots__ = ("critique_id", "critique_version")
        CRITIQUE_ID_FIELD_NUMBER: _ClassVar[int]
        CRITIQUE_VERSION_FIELD_NUMBER: _ClassVar[int]
        critique_id: str
        critique_version: str
        def __init__(self, critique_id: _Optional[str] = ..., critique_version: _Optional[str] = ...) -> None: ...
    class TextDelta(_message.Message):
        __slots__ = ("text",)
        TEXT_FIELD_NUMBER: _ClassVar[int]
        text: str
        def __init__(self, text: _Optional[str] = ...) -> None: ...
    class Finished(_message.Message):
        __slots__ = ("finish_reason", "usage", "critique", "output_token_ids", "output_logprobs", "version_spans")
        FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
        USAGE_FIELD_NUMBER: _ClassVar[int]
        CRITIQUE_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        VERSION_SPANS_FIELD_NUMBER: _ClassVar[int]
        finish_reason: _types_pb2.FinishReason
        usage: _types_pb2.Usage
        critique: str
        output_token_ids: _containers.RepeatedScalarFieldContainer[int]
        output_logprobs: _containers.RepeatedScalarFieldContainer[float]
        version_spans: _containers.RepeatedCompositeFieldContainer[_types_pb2.VersionSpan]
        def __init__(self, finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ..., critique: _Optional[str] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., output_logprobs: _Optional[_Iterable[float]] = ..., version_spans: _Optional[_Iterable[_Union[_types_pb2.VersionSpan, _Mapping]]] = ...) -> None: ...
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: CritiqueResponse.Started
    text: CritiqueResponse.TextDelta
    finished: CritiqueResponse.Finished
    def __init__(self, started: _Optional[_Union[CritiqueResponse.Started, _Mapping]] = ..., text: _Optional[_Union[CritiqueResponse.TextDelta, _Mapping]] = ..., finished: _Optional[_Union[CritiqueResponse.Finished, _Mapping]] = ...) -> None: ...
