"""URLs of media: the gateway's own are made and recognised here, `data:` URLs are opened, foreign ones are refused."""

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from anyloop.modality import Modality
from protos.anyloop.v1 import types_pb2
from services.gateway.errors import invalid

MEDIA_PATH = "/v1/media/"
_OWN_PATH = re.compile(r"^/v1/media/([0-9a-f]{64})/?$")
_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_DATA = re.compile(r"^data:([\w.+/-]*)((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.IGNORECASE)
_LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}
PROTO_MODALITY = {
    Modality.TEXT: types_pb2.MODALITY_TEXT,
    Modality.IMAGE: types_pb2.MODALITY_IMAGE,
    Modality.AUDIO: types_pb2.MODALITY_AUDIO,
    Modality.VIDEO: types_pb2.MODALITY_VIDEO,
}
FROM_PROTO = {number: modality for modality, number in PROTO_MODALITY.items()}


@dataclass(frozen=True)
class MediaLinks:
    """`base` is how this client reaches the gateway (`http://localhost:8080`); `public` the configured base, or ""."""

    base: str
    public: str = ""

    def url(self, sha256: str) -> str:
        return f"{(self.public or self.base).rstrip('/')}{MEDIA_PATH}{sha256}"

    def part(self, url: str, modality: Modality, param: str) -> types_pb2.ContentPart:
        """The content part behind `url`. Nothing is fetched. Raises GatewayError (400)."""
        if url[:5].lower() == "data:":
            return inline_part(*open_data_url(url, param), modality, param)
        split = urlsplit(url) if len(url) < 4096 else urlsplit("")
        own = _OWN_PATH.match(split.path)
        if own and (not split.netloc or split.netloc.lower() in self._own_hosts()):
            return types_pb2.ContentPart(
                media=types_pb2.MediaRef(sha256=own.group(1), modality=PROTO_MODALITY[modality])
            )
        raise invalid(
            "this gateway fetches nothing from other places: send the file as a data: URL, "
            "or upload it with POST /v1/media and use the URL that comes back",
            param,
            "foreign_url",
        )

    def _own_hosts(self) -> set[str]:
        hosts = {urlsplit(base).netloc.lower() for base in (self.base, self.public) if base}
        base = urlsplit(self.base)
        if base.hostname in _LOOPBACK:  # one machine, several names
            port = f":{base.port}" if base.port else ""
            hosts |= {f"{name}{port}" for name in _LOOPBACK}
        return hosts


def open_data_url(url: str, param: str) -> tuple[str, bytes]:
    """The mime type as declared (may be empty) and the bytes."""
    head = _DATA.match(url[:512])
    if head is None or not head.group(3):
        raise invalid("a data: URL reads data:<mime type>;base64,<data>", param, "malformed_data_url")
    return head.group(1).lower(), decode_base64(url[head.end() :], param)


def decode_base64(text: str, param: str) -> bytes:
    if "%" in text:
        text = unquote(text)
    try:
        data = binascii.a2b_base64(text.strip(), strict_mode=True)
    except ValueError as error:
        raise invalid(
            f"not valid base64 ({error}); encode the file's bytes again", param, "malformed_base64"
        ) from error
    if not data:
        raise invalid("the file is empty", param, "empty_file")
    return data


def inline_part(mime_type: str, data: bytes, modality: Modality, param: str) -> types_pb2.ContentPart:
    """`modality` is what the part's type promises; a mime type that says otherwise is refused here."""
    family = mime_type.partition("/")[0]
    if family in {str(m) for m in Modality} and family != modality:
        raise invalid(f"a part for {modality} carries {mime_type}; use the part type of that modality", param)
    return types_pb2.ContentPart(inline_media=types_pb2.InlineMedia(mime_type=f"{modality}/*", data=data))


def past_audio(audio_id: str, param: str) -> types_pb2.ContentPart:
    """`message.audio.id` of an earlier answer."""
    sha256 = audio_id.removeprefix("audio_")
    if not _SHA256.match(sha256):
        raise invalid("this audio id is not from an answer of this gateway", param, "unknown_audio")
    return types_pb2.ContentPart(media=types_pb2.MediaRef(sha256=sha256, modality=types_pb2.MODALITY_AUDIO))


def to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def modalities_to_proto(names: Iterable[str]) -> list[types_pb2.Modality]:
    return [PROTO_MODALITY[Modality(name)] for name in dict.fromkeys(names)]
