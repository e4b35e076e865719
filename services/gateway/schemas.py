"""REST request bodies. Every field that the openai client can send is known: honoured, neutral, or refused by name."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from services.gateway.body import GatewayErrorValue
from services.gateway.errors import invalid, unsupported
from services.gateway.parts import Content, Parts, Strict

MODEL_NAME = "anyloop"
ModalityName = Literal["text", "image", "audio", "video"]
MediaFormat = Literal["url", "b64"]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_.:\-]+$")]
Int32 = Annotated[int, Field(ge=1, le=2**31 - 1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[
    Annotated[str, Tag("·one"), Field(min_length=1, max_length=256)]
    | Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Tag("·many"), Field(max_length=4)],
    Discriminator(
        lambda value: {str: "·one", list: "·many"}.get(type(value)),
        custom_error_type="stop_type",
        custom_error_message="stop must be a string or a list of up to 4 strings",
    ),
]


Unsupported = dict[str, tuple[tuple[Any, ...], str]]


class OpenAIRequest(Strict):
    """`UNSUPPORTED` maps a parameter to the values that change nothing and to what to do instead of any other value."""

    UNSUPPORTED: ClassVar[Unsupported] = {}

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        for name, (neutral, way_out) in self.UNSUPPORTED.items():
            value = getattr(self, name)
            if value is not None and value not in neutral:
                raise GatewayErrorValue(unsupported(name, way_out))
        return self


class PastAudio(Strict):
    """A sound of an earlier answer, named by the id it came with."""

    id: str
    data: str | None = None
    transcript: str | None = None
    expires_at: int | None = None


class ChatMessage(OpenAIRequest):
    """A turn. An answer's message may be sent back as it came: `content_parts` then stands for its content."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | None = None
    content_parts: Parts | None = None
    audio: PastAudio | None = None
    name: str | None = None
    refusal: Any = None
    annotations: Any = None
    function_call: Any = None
    tool_calls: Any = None
    images: Any = None
    videos: Any = None

    UNSUPPORTED: ClassVar[Unsupported] = {
        "tool_calls": (([],), "leave the tool calls out of the history"),
        "function_call": ((), "leave the function call out of the history"),
    }

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.content is None and self.content_parts is None and self.audio is None:
            raise ValueError("a message needs content")
        return self


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class AudioOptions(Strict):
    """OpenAI requires both with modality audio. The model has one voice, so `voice` names nothing here."""

    format: Literal["wav"] = "wav"
    voice: Any = None


class Sampling(OpenAIRequest):
    """What chat, images and speech share. `top_k`, `min_p`, `repetition_penalty` and `conversation_id` are ours."""

    model: Name = MODEL_NAME
    n: Annotated[int, Field(ge=1, le=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Int32 | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    conversation_id: Name | None = None


class ChatRequest(Sampling):
    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    modalities: Annotated[list[ModalityName], Field(min_length=1)] | None = None
    audio: AudioOptions | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[TokenId, Annotated[float, Field(ge=-100, le=100)]] | None = Field(None, max_length=1024)
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    store: bool | None = Field(None, description="false: the response is not logged and cannot be learned from")
    metadata: dict[str, Annotated[str, Field(max_length=512)]] | None = Field(None, max_length=16)
    media_format: MediaFormat = Field("url", description="b64: media of the answer as data: URLs")
    response_format: Any = None
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    prediction: Any = None
    moderation: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None

    UNSUPPORTED: ClassVar[Unsupported] = {
        "response_format": (({"type": "text"},), "only {'type': 'text'} is possible"),
        "tools": (([],), "leave it out; the model calls no tools"),
        "tool_choice": (("none", "auto"), "leave it out; the model calls no tools"),
        "functions": (([],), "leave it out; the model calls no functions"),
        "function_call": (("none", "auto"), "leave it out; the model calls no functions"),
        "prediction": ((), "leave it out"),
        "moderation": ((), "leave it out"),
        "web_search_options": ((), "leave it out; the model does not search"),
        "reasoning_effort": (("none",), "leave it out"),
        "verbosity": (("medium",), "leave it out"),
        "service_tier": (("auto", "default"), "leave it out"),
    }

    @model_validator(mode="after")
    def _limits_agree(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true")
        if self.top_logprobs and not self.logprobs:
            raise GatewayErrorValue(invalid("top_logprobs needs logprobs=true", "top_logprobs"))
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise ValueError("max_tokens and max_completion_tokens differ; send max_completion_tokens alone")
        return self


class ImageRequest(Sampling):
    prompt: Annotated[str, Field(min_length=1, max_length=32_000)]
    response_format: Literal["url", "b64_json"] = "url"
    size: Any = None
    quality: Any = None
    style: Any = None
    stream: Any = None
    background: Any = None
    moderation: Any = None
    output_format: Any = None
    output_compression: Any = None
    partial_images: Any = None
    complexity: Any = None
    frame_count: Any = None
    frame_duration_ms: Any = None
    svg: Any = None

    UNSUPPORTED: ClassVar[Unsupported] = {
        "size": (("auto", "256x256"), "leave it out, or use '256x256'"),
        "quality": (("auto", "standard"), "leave it out"),
        "style": ((), "leave it out and say it in the prompt"),
        "stream": ((False,), "use /v1/chat/completions with modalities ['image'] to stream"),
        "background": (("auto", "opaque"), "leave it out"),
        "moderation": (("auto",), "leave it out"),
        "output_format": (("png",), "images are PNG"),
        "output_compression": ((100,), "images are PNG"),
        "partial_images": ((0,), "leave it out"),
        "complexity": ((), "leave it out"),
        "frame_count": ((1,), "use /v1/chat/completions with modalities ['video'] for moving pictures"),
        "frame_duration_ms": ((), "use /v1/chat/completions with modalities ['video'] for moving pictures"),
        "svg": ((), "leave it out"),
    }


class SpeechRequest(Sampling):
    input: Annotated[str, Field(min_length=1, max_length=4096)]
    voice: Any = None
    instructions: Annotated[str, Field(max_length=4096)] | None = None
    response_format: Literal["wav"] = "wav"
    speed: Any = None
    stream_format: Any = None

    UNSUPPORTED: ClassVar[Unsupported] = {
        "speed": ((1,), "leave it out and say it in the input"),
        "stream_format": (("audio",), "leave it out; the sound comes as one WAV file"),
        "n": ((1,), "ask once for each sound"),
    }


Score = Annotated[float, Field(ge=0, le=1)]
Dimension = Annotated[str, Field(min_length=1, max_length=64)]


class FeedbackRequest(Strict):
    """One statement about one response or a whole conversation: at least one of critique … tags."""

    response_id: Name | None = None
    conversation_id: Name | None = None
    critique: Annotated[str, Field(max_length=8192)] | None = Field(None, description="What is wrong, in words")
    refinement: Content | None = Field(None, description="How it should have been")
    rating: (
        Annotated[
            Annotated[Score, Tag("·overall")]
            | Annotated[dict[Dimension, Score], Tag("·dimensions"), Field(min_length=1, max_length=16)],
            Discriminator(
                lambda value: {int: "·overall", float: "·overall", dict: "·dimensions"}.get(type(value)),
                custom_error_type="rating_type",
                custom_error_message="rating must be a number from 0 to 1, or an object of dimension -> number",
            ),
        ]
        | None
    ) = None
    label: bool | None = Field(None, description="Good (true) or bad")
    preferred_over: Name | None = Field(None, description="Another response id, worse than response_id")
    comparison: Annotated[str, Field(max_length=8192)] | None = Field(
        None, description="In words, how it compares with preferred_over"
    )
    tags: Annotated[list[Annotated[str, Field(min_length=1, max_length=64)]], Field(max_length=32)] | None = None
    idempotency_key: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    dry_run: bool = False
