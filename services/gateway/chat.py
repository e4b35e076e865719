"""OpenAI's chat shapes to the contract's messages and back."""

import time
from dataclasses import dataclass
from typing import Any

from anyloop.modality import Modality
from protos.anyloop.v1 import policy_pb2, types_pb2
from services.gateway.answers import Answer
from services.gateway.errors import invalid
from services.gateway.links import (
    FROM_PROTO,
    MediaLinks,
    decode_base64,
    inline_part,
    modalities_to_proto,
    past_audio,
    to_base64,
)
from services.gateway.logprobs import TokenNames
from services.gateway.logprobs import render as render_logprobs
from services.gateway.media import MediaDesk
from services.gateway.parts import AudioPart, ImagePart, InputAudioPart, Part, TextPart
from services.gateway.schemas import ChatMessage, ChatRequest, Sampling

ROLES = {
    "system": types_pb2.ROLE_SYSTEM,
    "developer": types_pb2.ROLE_SYSTEM,
    "user": types_pb2.ROLE_USER,
    "assistant": types_pb2.ROLE_ASSISTANT,
}
_AS_ASKED = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "top_logprobs",
)
AUDIO_LIFETIME_S = 30 * 24 * 3600  # OpenAI's shape wants an end; the store itself keeps media


def chat_to_proto(chat: ChatRequest, links: MediaLinks) -> policy_pb2.GenerateRequest:
    """Raises GatewayError on a part that cannot be opened. Base64 makes it long: run it off the event loop."""
    request = policy_pb2.GenerateRequest(
        conversation_id=chat.conversation_id or "",
        messages=[message_to_proto(message, f"messages[{i}]", links) for i, message in enumerate(chat.messages)],
        modalities=modalities_to_proto(chat.modalities or ()),
        sampling=sampling_to_proto(chat, chat.max_completion_tokens or chat.max_tokens, chat.stop),
        unlogged=chat.store is False,
    )
    request.metadata.update(chat.metadata or {})
    return request


def message_to_proto(message: ChatMessage, path: str, links: MediaLinks) -> types_pb2.Message:
    content = message.content_parts if message.content_parts is not None else message.content
    parts = content_to_proto(content if content is not None else [], f"{path}.content", links)
    if message.audio is not None and message.content_parts is None:  # content_parts name the sound themselves
        parts.append(past_audio(message.audio.id, f"{path}.audio"))
    if not parts:
        raise invalid("a message needs content", f"{path}.content")
    return types_pb2.Message(role=ROLES[message.role], parts=parts)


def content_to_proto(content: str | list[Part], path: str, links: MediaLinks) -> list[types_pb2.ContentPart]:
    if isinstance(content, str):
        return [types_pb2.ContentPart(text=content)] if content else []
    return [_part_to_proto(part, f"{path}[{index}]", links) for index, part in enumerate(content)]


def _part_to_proto(part: Any, path: str, links: MediaLinks) -> types_pb2.ContentPart:
    if isinstance(part, TextPart):
        return types_pb2.ContentPart(text=part.text)
    if isinstance(part, ImagePart):
        return links.part(part.image_url.url, Modality.IMAGE, f"{path}.image_url.url")
    if isinstance(part, AudioPart):
        return links.part(part.audio_url.url, Modality.AUDIO, f"{path}.audio_url.url")
    if isinstance(part, InputAudioPart):
        param = f"{path}.input_audio.data"
        return inline_part("", decode_base64(part.input_audio.data, param), Modality.AUDIO, param)
    return links.part(part.video_url.url, Modality.VIDEO, f"{path}.video_url.url")


def sampling_to_proto(
    body: Sampling, max_tokens: int | None = None, stop: str | list[str] | None = None
) -> types_pb2.SamplingParams:
    """Unset fields stay unset: the checkpoint's defaults hold. A negative seed is taken modulo 2**64."""
    sampling = types_pb2.SamplingParams(stop=[stop] if isinstance(stop, str) else stop or [], max_tokens=max_tokens)
    if body.seed is not None:
        sampling.seed = body.seed % 2**64
    for name in _AS_ASKED:
        value = getattr(body, name, None)
        if value is not None:
            setattr(sampling, name, value)
    sampling.logit_bias.update(getattr(body, "logit_bias", None) or {})
    return sampling


@dataclass(frozen=True)
class ChatRenderer:
    """Answers in OpenAI's shapes. `model` is the name that the client asked for."""

    media: MediaDesk
    links: MediaLinks
    model: str
    base64: bool = False
    wants_audio: bool = False
    names: TokenNames | None = None  # set when log-probabilities are wanted

    async def part(self, part: types_pb2.ContentPart) -> dict[str, Any]:
        """A content part that may be sent back as input."""
        if part.WhichOneof("part") == "text":
            return {"type": "text", "text": part.text}
        ref = part.media
        url = self.links.url(ref.sha256)
        if self.base64:
            url = f"data:{ref.mime_type};base64,{to_base64(await self.media.read(ref.sha256))}"
        kind = f"{FROM_PROTO[ref.modality]}_url"
        return {"type": kind, kind: {"url": url, "mime_type": ref.mime_type, "sha256": ref.sha256}}

    async def message(self, answer: Answer) -> dict[str, Any]:
        """`content` is the text, or null; everything in its order stands in `content_parts`."""
        parts = [await self.part(part) for part in answer.parts]
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or None, "refusal": None}
        if answer.media:
            message["content_parts"] = parts
            message.update(by_kind(parts))
        sound = first_sound(answer.media)
        if sound is not None and self.wants_audio:
            message["audio"] = {**await self.audio(sound), "transcript": answer.text}
        return message

    async def audio(self, ref: types_pb2.MediaRef) -> dict[str, Any]:
        data = to_base64(await self.media.read(ref.sha256))
        return {"id": f"audio_{ref.sha256}", "data": data, "expires_at": int(time.time()) + AUDIO_LIFETIME_S}

    async def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "message": await self.message(answer),
            "logprobs": self.logprobs(answer),
            "finish_reason": answer.finish_reason,
            "response_id": answer.response_id,
        }

    async def completion(self, answers: list[Answer]) -> dict[str, Any]:
        return {
            "id": answers[0].response_id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": answers[0].version,
            "choices": [await self.choice(index, answer) for index, answer in enumerate(answers)],
            "usage": usage(answers),
        }

    def logprobs(self, text: Answer | policy_pb2.GenerateResponse.TextDelta) -> dict[str, Any] | None:
        """Those of a whole answer or of a piece of it; None where they are not wanted."""
        if self.names is None:
            return None
        return render_logprobs(self.names, text.token_ids, text.logprobs, text.top_logprobs)


def by_kind(parts: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`images` and `videos` as many clients look for them, where there are any."""
    kinds = {"images": "image_url", "videos": "video_url"}
    found = {name: [part for part in parts if part["type"] == kind] for name, kind in kinds.items()}
    return {name: media for name, media in found.items() if media}


def first_sound(media: list[types_pb2.MediaRef]) -> types_pb2.MediaRef | None:
    return next((ref for ref in media if ref.modality == types_pb2.MODALITY_AUDIO), None)


def usage(answers: list[Answer]) -> dict[str, int]:
    """The prompt counts once, however many choices were asked for."""
    prompt = max((answer.prompt_tokens for answer in answers), default=0)
    completion = sum(answer.completion_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
