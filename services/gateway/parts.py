"""Content parts as clients write them: OpenAI's, and `audio_url` / `video_url` as vLLM has them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

TEXT_LIMIT = 1_000_000  # characters of one text; the model's window is far smaller, and says so itself


class Strict(BaseModel):
    """No coercion, no unknown fields, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Url(Strict):
    """A `data:` URL, or a URL of this gateway's own media. The last two fields are what our answers carry."""

    url: str = Field(min_length=1)
    detail: Any = None
    mime_type: str | None = None
    sha256: str | None = None


class AudioData(Strict):
    data: str = Field(min_length=1, description="Base64 of the file")
    format: str = Field(min_length=1, max_length=32, description="wav, mp3, flac or ogg")


class TextPart(Strict):
    type: Literal["text"]
    text: str = Field(max_length=TEXT_LIMIT)


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: Url


class InputAudioPart(Strict):
    type: Literal["input_audio"]
    input_audio: AudioData


class AudioPart(Strict):
    type: Literal["audio_url"]
    audio_url: Url


class VideoPart(Strict):
    type: Literal["video_url"]
    video_url: Url


PART_TYPES = ("text", "image_url", "input_audio", "audio_url", "video_url")


def _part_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"·{kind}" if kind in PART_TYPES else None


# Tags begin with "·" so that the path in an error message can leave them out.
Part = Annotated[
    Annotated[TextPart, Tag("·text")]
    | Annotated[ImagePart, Tag("·image_url")]
    | Annotated[InputAudioPart, Tag("·input_audio")]
    | Annotated[AudioPart, Tag("·audio_url")]
    | Annotated[VideoPart, Tag("·video_url")],
    Discriminator(
        _part_tag,
        custom_error_type="unknown_part",
        custom_error_message=f"unknown content part; its 'type' must be one of {', '.join(PART_TYPES)}",
    ),
]


def _content_tag(value: Any) -> str | None:
    if isinstance(value, str):
        return "·text"
    return "·parts" if isinstance(value, list) else None


Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
Parts = Annotated[list[Part], Field(min_length=1, max_length=64)]
Content = Annotated[
    Annotated[Text, Tag("·text")] | Annotated[Parts, Tag("·parts")],
    Discriminator(
        _content_tag,
        custom_error_type="content_type",
        custom_error_message="content must be a string or a list of content parts",
    ),
]
