from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SwapMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SWAP_MODE_UNSPECIFIED: _ClassVar[SwapMode]
    SWAP_MODE_FINISH: _ClassVar[SwapMode]
    SWAP_MODE_KEEP: _ClassVar[SwapMode]
    SWAP_MODE_RECOMPUTE: _ClassVar[SwapMode]
SWAP_MODE_UNSPECIFIED: SwapMode
SWAP_MODE_FINISH: SwapMode
SWAP_MODE_KEEP: SwapMode
SWAP_MODE_RECOMPUTE: SwapMode

class WeightsInfo(_message.Message):
    __slots__ = ("version", "digest", "serving", "running_requests")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    SERVING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    version: str
    digest: str
    serving: bool
    running_requests: int
    def __init__(self, version: _Optional[str] = ..., digest: _Optional[str] = ..., serving: _Optional[bool] = ..., running_requests: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("model_name", "serving_version", "weights", "requests_running", "requests_waiting", "draining", "wanted_version", "swap_failure", "forward", "kv_cache_bytes", "reused_prompt_tokens")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    SERVING_VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_RUNNING_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_WAITING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    WANTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    SWAP_FAILURE_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    REUSED_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    serving_version: str
    weights: _containers.RepeatedCompositeFieldContainer[WeightsInfo]
    requests_running: int
    requests_waiting: int
    draining: bool
    wanted_version: str
    swap_failure: str
    forward: str
    kv_cache_bytes: int
    reused_prompt_tokens: int
    def __init__(self, model_name: _Optional[str] = ..., serving_version: _Optional[str] = ..., weights: _Optional[_Iterable[_Union[WeightsInfo, _Mapping]]] = ..., requests_running: _Optional[int] = ..., requests_waiting: _Optional[int] = ..., draining: _Optional[bool] = ..., wanted_version: _Optional[str] = ..., swap_failure: _Optional[str] = ..., forward: _Optional[str] = ..., kv_cache_bytes: _Optional[int] = ..., reused_prompt_tokens: _Optional[int] = ...) -> None: ...

class LoadWeightsRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class ActivateWeightsRequest(_message.Message):
    __slots__ = ("version", "mode")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    version: str
    mode: SwapMode
    def __init__(self, version: _Optional[str] = ..., mode: _Optional[_Union[SwapMode, str]] = ...) -> None: ...

class ActivateWeightsResponse(_message.Message):
    __slots__ = ("weights", "previous_version", "stall_seconds", "load_seconds", "longest_step_gap_seconds", "median_step_gap_seconds")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    STALL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOAD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LONGEST_STEP_GAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_STEP_GAP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    weights: WeightsInfo
    previous_version: str
    stall_seconds: float
    load_seconds: float
    longest_step_gap_seconds: float
    median_step_gap_seconds: float
    def __init__(self, weights: _Optional[_Union[WeightsInfo, _Mapping]] = ..., previous_version: _Optional[str] = ..., stall_seconds: _Optional[float] = ..., load_seconds: _Optional[float] = ..., longest_step_gap_seconds: _Optional[float] = ..., median_step_gap_seconds: _Optional[float] = ...) -> None: ...

class UnloadWeightsRequest(_message.Message):
    __slots__ = ("version",)
    VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    def __init__(self, version: _Optional[str] = ...) -> None: ...

class UnloadWeightsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("timeout_seconds",)
    TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    timeout_seconds: float
    def __init__(self, timeout_seconds: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("aborted_requests",)
    ABORTED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    aborted_requests: int
    def __init__(self, aborted_requests: _Optional[int] = ...) -> None: ...
