"""The gateway as a client sees it: REST and nothing else. Used by the commands and by the demo."""

import base64
import json
import mimetypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.modality import Modality

_PART_OF = {Modality.IMAGE: "image_url", Modality.AUDIO: "audio_url", Modality.VIDEO: "video_url"}
_MODALITY_OF = {name: modality for modality, name in _PART_OF.items()}


class RequestFailed(CommandError):
    """The gateway refused, failed, or cannot be reached (`status` 0). The message is the gateway's own sentence;
    `retry_after_s` is how long it asks to wait, where it says so."""

    def __init__(self, status: int, message: str, retry_after_s: float | None = None) -> None:
        codes = {0: ExitCode.UNREACHABLE, 503: ExitCode.UNREACHABLE, 404: ExitCode.NOT_FOUND}
        super().__init__(message, codes.get(status, ExitCode.REFUSED if 400 <= status < 500 else ExitCode.FAILED))
        self.status = status
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class MediaPart:
    """A medium of an answer; `url` is the gateway's or a `data:` URL."""

    modality: Modality
    url: str
    mime_type: str


@dataclass(frozen=True)
class Reply:
    """One answer. `id` is what feedback names, `version` the policy version that answered."""

    id: str
    version: str
    text: str
    media: tuple[MediaPart, ...]
    finish_reason: str
    completion_tokens: int


class GatewayClient:
    """Thread-safe, as httpx.Client is. Every failure is a RequestFailed."""

    def __init__(self, url: str, *, key: str = "", timeout_s: float = 120.0, connections: int = 64) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            timeout=timeout_s,
            trust_env=False,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def __enter__(self) -> "GatewayClient":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._http.close()

    def ready(self) -> bool:
        try:
            return self._http.get("/ready", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def models(self) -> list[dict[str, Any]]:
        return list(self._json("GET", "/v1/models")["data"])

    def chat(self, content: Sequence[dict[str, Any]], **options: Any) -> Reply:
        """One user turn; `options` are those of the REST body (`modalities`, `seed`, `temperature` ...)."""
        return reply_of(self._json("POST", "/v1/chat/completions", _body(content, options)))

    def chat_stream(self, content: Sequence[dict[str, Any]], **options: Any) -> Iterator[dict[str, Any]]:
        """The chunks of one answer as they arrive."""
        body = {**_body(content, options), "stream": True, "stream_options": {"include_usage": True}}
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal(response)
                for line in response.iter_lines():
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:") or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if "error" in chunk:
                        raise RequestFailed(500, str(chunk["error"].get("message", chunk["error"])))
                    yield chunk
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def feedback(self, statement: dict[str, Any]) -> dict[str, Any]:
        """`statement` is the body of POST /v1/feedback."""
        return self._json("POST", "/v1/feedback", statement)

    def fetch(self, url: str) -> bytes:
        """The bytes of a medium of an answer."""
        if url.startswith("data:"):
            return base64.b64decode(url.partition(",")[2])
        try:
            response = self._http.get(url)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise _refusal(response)
        return response.content

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        if not response.is_success:
            raise _refusal(response)
        return dict(response.json())

    def _unreachable(self, error: httpx.HTTPError) -> RequestFailed:
        why = str(error) or type(error).__name__
        return RequestFailed(0, f"No answer from {self.url} ({why}): is `anyloop up` running, or --url right?")


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def media_part(modality: Modality, data: bytes, mime_type: str) -> dict[str, Any]:
    """A medium sent along as a `data:` URL."""
    url = f"data:{mime_type};base64,{base64.b64encode(data).decode()}"
    return {"type": _PART_OF[modality], _PART_OF[modality]: {"url": url}}


def file_part(modality: Modality, path: Path) -> dict[str, Any]:
    """Raises CommandError when the file cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CommandError(f"Cannot read {path}: {error.strerror}", ExitCode.USAGE) from error
    return media_part(modality, data, mimetypes.guess_type(path)[0] or f"{modality}/*")


def reply_of(completion: dict[str, Any]) -> Reply:
    """The first choice of a chat completion."""
    choice = completion["choices"][0]
    message = choice["message"]
    content = message.get("content_parts") or message.get("content") or ""
    parts = content if isinstance(content, list) else [text_part(content)]
    return Reply(
        id=completion["id"],
        version=completion.get("system_fingerprint") or "",
        text="".join(part["text"] for part in parts if part["type"] == "text"),
        media=tuple(media_of(part) for part in parts if part["type"] in _MODALITY_OF),
        finish_reason=choice.get("finish_reason") or "",
        completion_tokens=(completion.get("usage") or {}).get("completion_tokens", 0),
    )


def media_of(part: dict[str, Any]) -> MediaPart:
    medium = part[part["type"]]
    return MediaPart(_MODALITY_OF[part["type"]], medium["url"], medium.get("mime_type") or "")


def _body(content: Sequence[dict[str, Any]], options: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in options.items() if value is not None}
    return {"model": "anyloop", "messages": [{"role": "user", "content": list(content)}], **given}


def _refusal(response: httpx.Response) -> RequestFailed:
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = response.text[:300] or response.reason_phrase
    after = response.headers.get("Retry-After", "")  # a date, which HTTP allows too, is left to the caller's own pace
    wait = float(after) if after.isdecimal() else None
    return RequestFailed(response.status_code, f"{message} (HTTP {response.status_code})", wait)
