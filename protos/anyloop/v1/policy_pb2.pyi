from protos.anyloop.v1 import scoring_pb2 as _scoring_pb2
from protos.anyloop.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("response_id", "conversation_id", "messages", "modalities", "sampling", "policy_version", "principal", "unlogged", "prompt_token_ids", "tokens_only", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MODALITIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    UNLOGGED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ONLY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    response_id: str
    conversation_id: str
    messages: _containers.RepeatedCompositeFieldContainer[_types_pb2.Message]
    modalities: _containers.RepeatedScalarFieldContainer[_types_pb2.Modality]
    sampling: _types_pb2.SamplingParams
    policy_version: str
    principal: str
    unlogged: bool
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    tokens_only: bool
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, response_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_types_pb2.Message, _Mapping]]] = ..., modalities: _Optional[_Iterable[_Union[_types_pb2.Modality, str]]] = ..., sampling: _Optional[_Union[_types_pb2.SamplingParams, _Mapping]] = ..., policy_version: _Optional[str] = ..., principal: _Optional[str] = ..., unlogged: _Optional[bool] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., tokens_only: _Optional[bool] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("started", "text", "media", "finished")
    class Started(_message.Message):
        __slots__ = ("response_id", "policy_version", "prompt_tokens")
        RESPONSE_ID_FIELD_NUMBER: _ClassVar[int]
        POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
        PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
        response_id: str
        policy_version: str
        prompt_tokens: int
        def __init__(self, response_id: _Optional[str] = ..., policy_version: _Optional[str] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...
    class TextDelta(_message.Message):
        __slots__ = ("text", "token_ids", "logprobs", "top_logprobs")
        TEXT_FIELD_NUMBER: _ClassVar[int]
        TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        text: str
        token_ids: _containers.RepeatedScalarFieldContainer[int]
        logprobs: _containers.RepeatedScalarFieldContainer[float]
        top_logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopLogprobs]
        def __init__(self, text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_logprobs: _Optional[_Iterable[_Union[_types_pb2.TopLogprobs, _Mapping]]] = ...) -> None: ...
    class MediaPart(_message.Message):
        __slots__ = ("media", "modality")
        MEDIA_FIELD_NUMBER: _ClassVar[int]
        MODALITY_FIELD_NUMBER: _ClassVar[int]
        media: _types_pb2.MediaRef
        modality: _types_pb2.Modality
        def __init__(self, media: _Optional[_Union[_types_pb2.MediaRef, _Mapping]] = ..., modality: _Optional[_Union[_types_pb2.Modality, str]] = ...) -> None: ...
    class Finished(_message.Message):
        __slots__ = ("finish_reason", "usage", "version_spans", "prompt_token_ids", "output_token_ids", "output_logprobs", "message", "top_logprobs")
        FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
        USAGE_FIELD_NUMBER: _ClassVar[int]
        VERSION_SPANS_FIELD_NUMBER: _ClassVar[int]
        PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
        OUTPUT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        MESSAGE_FIELD_NUMBER: _ClassVar[int]
        TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
        finish_reason: _types_pb2.FinishReason
        usage: _types_pb2.Usage
        version_spans: _containers.RepeatedCompositeFieldContainer[_types_pb2.VersionSpan]
        prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
        output_token_ids: _containers.RepeatedScalarFieldContainer[int]
        output_logprobs: _containers.RepeatedScalarFieldContainer[float]
        message: _types_pb2.Message
        top_logprobs: _containers.RepeatedCompositeFieldContainer[_types_pb2.TopLogprobs]
        def __init__(self, finish_reason: _Optional[_Union[_types_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_types_pb2.Usage, _Mapping]] = ..., version_spans: _Optional[_Iterable[_Union[_types_pb2.VersionSpan, _Mapping]]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., output_logprobs: _Optional[_Iterable[float]] = ..., message: _Optional[_Union[_types_pb2.Message, _Mapping]] = ..., top_logprobs: _Optional[_Iterable[_Union[_types_pb2.TopLogprobs, _Mapping]]] = ...) -> None: ...
    STARTED_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: GenerateResponse.Started
    text: GenerateResponse.TextDelta
    media: GenerateResponse.MediaPart
    finished: GenerateResponse.Finished
    def __init__(self, started: _Optional[_Union[GenerateResponse.Started, _Mapping]] = ..., text: _Optional[_Union[GenerateResponse.TextDelta, _Mapping]] = ..., media: _Optional[_Union[GenerateResponse.MediaPart, _Mapping]] = ..., finished: _Optional[_Union[GenerateResponse.Finished, _Mapping]] = ...) -> None: ...
