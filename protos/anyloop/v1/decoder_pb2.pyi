from protos.anyloop.v1 import types_pb2 as _types_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EncodeRequest(_message.Message):
    __slots__ = ("modality", "media", "inline_media")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    INLINE_MEDIA_FIELD_NUMBER: _ClassVar[int]
    modality: _types_pb2.Modality
    media: _types_pb2.MediaRef
    inline_media: _types_pb2.InlineMedia
    def __init__(self, modality: _Optional[_Union[_types_pb2.Modality, str]] = ..., media: _Optional[_Union[_types_pb2.MediaRef, _Mapping]] = ..., inline_media: _Optional[_Union[_types_pb2.InlineMedia, _Mapping]] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("codes", "codec_digest")
    CODES_FIELD_NUMBER: _ClassVar[int]
    CODEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    codes: _containers.RepeatedScalarFieldContainer[int]
    codec_digest: str
    def __init__(self, codes: _Optional[_Iterable[int]] = ..., codec_digest: _Optional[str] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("modality", "codes")
    MODALITY_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    modality: _types_pb2.Modality
    codes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, modality: _Optional[_Union[_types_pb2.Modality, str]] = ..., codes: _Optional[_Iterable[int]] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("media", "codec_digest")
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    CODEC_DIGEST_FIELD_NUMBER: _ClassVar[int]
    media: _types_pb2.MediaRef
    codec_digest: str
    def __init__(self, media: _Optional[_Union[_types_pb2.MediaRef, _Mapping]] = ..., codec_digest: _Optional[str] = ...) -> None: ...
