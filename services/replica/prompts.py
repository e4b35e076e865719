"""Messages to turns to prompt tokens: media become codes through the decoder service, once each."""

import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal

from anyloop.media.store import modality_of
from anyloop.modality import Modality
from anyloop.sequence import Codes, Segment, Sequencer, Turn
from anyloop.telemetry import context, tracing
from protos.anyloop.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2
from services.replica.deadline import Deadline
from services.rpc.errors import invalid

RoleName = Literal["system", "user", "assistant"]
_ROLES: dict[int, RoleName] = {
    types_pb2.ROLE_SYSTEM: "system",
    types_pb2.ROLE_USER: "user",
    types_pb2.ROLE_ASSISTANT: "assistant",
}
_MODALITIES = {types_pb2.Modality.Value(f"MODALITY_{modality.name}"): modality for modality in Modality}
_SHA256 = re.compile(r"[0-9a-f]{64}")
REMEMBERED_MEDIA = 4096


class MediaCodes:
    """Codes of stored media, and media of codes, by the decoder service. Content never changes under its hash, so the
    codes of the last few thousand media are kept."""

    def __init__(self, decoders: decoder_pb2_grpc.DecoderServiceStub, remember: int = REMEMBERED_MEDIA) -> None:
        self._decoders = decoders
        self._remember = remember
        self._known: OrderedDict[tuple[Modality, str], tuple[int, ...]] = OrderedDict()

    async def encode(self, media: types_pb2.MediaRef, modality: Modality, deadline: Deadline) -> Codes:
        key = (modality, media.sha256)
        if key in self._known:
            self._known.move_to_end(key)
        else:
            request = decoder_pb2.EncodeRequest(modality=proto_modality(modality), media=media)
            with tracing.span(f"encode {modality}", kind="client"):
                answer = await self._decoders.Encode(request, timeout=deadline.remaining(), metadata=context.outgoing())
            self._known[key] = tuple(answer.codes)
            if len(self._known) > self._remember:
                self._known.popitem(last=False)
        return Codes(modality, self._known[key])

    async def decode(self, codes: Codes, deadline: Deadline) -> types_pb2.MediaRef:
        request = decoder_pb2.DecodeRequest(modality=proto_modality(codes.modality), codes=codes.codes)
        with tracing.span(f"decode {codes.modality}", kind="client"):
            answer = await self._decoders.Decode(request, timeout=deadline.remaining(), metadata=context.outgoing())
        return answer.media


def proto_modality(modality: Modality) -> types_pb2.Modality.ValueType:
    return types_pb2.Modality.Value(f"MODALITY_{modality.name}")


class PromptBuilder:
    """Checks what a client sent and renders it. Raises RpcError INVALID_ARGUMENT with a sentence that says what to do,
    NOT_FOUND for media that are not stored."""

    def __init__(self, sequencer: Sequencer, media: MediaCodes, capacity: int) -> None:
        self.sequencer = sequencer
        self._media = media
        self._capacity = capacity
        longest = max(len(token) for token in sequencer.tokenizer.get_vocab())
        self._most_characters = capacity * longest
        self._shortest_medium = min((span.length + 2 for span in sequencer.layout.codes.values()), default=0)

    async def turns(self, messages: Sequence[types_pb2.Message], deadline: Deadline) -> list[Turn]:
        if not messages:
            raise invalid("messages is empty: send at least one message, or prompt_token_ids")
        self.check_length(messages)
        turns = []
        for index, message in enumerate(messages):
            role = _ROLES.get(message.role)
            if role is None:
                raise invalid(f"messages[{index}] has no role: set SYSTEM, USER or ASSISTANT")
            turns.append(Turn(role, await self.segments(message, f"messages[{index}]", deadline)))
        return turns

    async def segments(self, message: types_pb2.Message, where: str, deadline: Deadline) -> tuple[Segment, ...]:
        """The parts of one message, neighbouring texts joined."""
        segments: list[Segment] = []
        for index, part in enumerate(message.parts):
            place = f"{where}.parts[{index}]"
            kind = part.WhichOneof("part")
            if kind == "text":
                if segments and isinstance(segments[-1], str):
                    segments[-1] += part.text
                elif part.text:
                    segments.append(part.text)
            elif kind == "media":
                modality = self._modality(part.media, place)
                segments.append(await self._media.encode(part.media, modality, deadline))
            elif kind == "inline_media":
                raise invalid(f"{place} carries media bytes: store them first and send their reference")
            else:
                raise invalid(f"{place} is empty or of a kind this service does not know: send text or media")
        if not segments:
            raise invalid(f"{where} says nothing: give it text or media")
        return tuple(segments)

    def given(self, tokens: Iterable[int]) -> list[int]:
        """A prompt that came rendered. LayoutError (INVALID_ARGUMENT) when it is none of this model's."""
        prompt = list(tokens)
        if len(prompt) >= self._capacity:
            raise invalid(
                f"prompt_token_ids holds {len(prompt)} ids and this model holds {self._capacity} tokens for prompt and "
                "answer together: shorten the prompt"
            )
        wrong = [token for token in prompt if not 0 <= token < self.sequencer.layout.vocabulary_size]
        if wrong:
            raise invalid(
                f"prompt_token_ids holds {wrong[0]}; ids of this model are below "
                f"{self.sequencer.layout.vocabulary_size}: render the prompt with this model's tokenizer"
            )
        self.sequencer.parse_prompt(prompt)
        return prompt

    def answer_modalities(self, numbers: Iterable[int]) -> list[Modality]:
        """The modalities an answer may have; empty when the policy may choose."""
        allowed = []
        served = [Modality.TEXT, *self.sequencer.layout.codes]
        for number in numbers:
            modality = _MODALITIES.get(number)
            if modality is None:
                raise invalid(f"modality {number} is unknown: this model answers in {', '.join(served)}")
            if modality not in served:
                raise invalid(f"this model does not answer in {modality}, only in {', '.join(served)}")
            if modality not in allowed:
                allowed.append(modality)
        return allowed

    def _modality(self, media: types_pb2.MediaRef, where: str) -> Modality:
        if not _SHA256.fullmatch(media.sha256):
            raise invalid(f"{where}.media.sha256 is not 64 lower-case hexadecimal digits")
        modality = _MODALITIES.get(media.modality)
        if modality is None:
            try:
                modality = modality_of(media.mime_type)
            except ValueError as error:
                raise invalid(f"{where}.media has no modality: set IMAGE, AUDIO or VIDEO ({error})") from error
        if modality not in self.sequencer.layout.codes:
            has = ", ".join([Modality.TEXT, *self.sequencer.layout.codes])
            raise invalid(f"{where} is {modality}, which this model does not take; it takes {has}")
        return modality

    def check_length(self, messages: Sequence[types_pb2.Message]) -> None:
        """Turns away, before the tokenizer and the decoders work on it, what cannot fit whatever they make of it."""
        parts = [part for message in messages for part in message.parts]
        characters = sum(len(part.text) for part in parts)
        media = sum(part.HasField("media") for part in parts)
        for count, most, what in (
            (characters, self._most_characters, "characters"),
            (len(parts), self._most_characters, "content parts"),
            (media * self._shortest_medium, self._capacity, f"tokens in {media} media"),
        ):
            if count > most:
                raise invalid(
                    f"the prompt has {count} {what} and this model holds {self._capacity} tokens for prompt and "
                    "answer together: shorten the conversation"
                )


def check_identifier(value: str, name: str) -> str:
    """Ids end up in log keys and file names. Raises RpcError INVALID_ARGUMENT."""
    if len(value) > 128 or not value.isprintable():
        raise invalid(f"{name} must have at most 128 printable characters")
    return value
