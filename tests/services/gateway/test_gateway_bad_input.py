"""What clients get wrong: the right status and a sentence that says what to do; nothing reaches the policy."""

import asyncio
import base64
import io
import json
import zlib
from types import ModuleType
from typing import Any

import pytest

MESSAGES = [{"role": "user", "content": "hello"}]


def bomb(side: int) -> bytes:
    """A PNG of a kilobyte that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def image(url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


def encoded(data: bytes, mime_type: str = "image/png") -> str:
    return f"data:{mime_type};base64,{base64.b64encode(data).decode()}"


BAD = {
    "wrong type": ({"messages": MESSAGES, "temperature": "warm"}, "temperature", "valid number"),
    "number as text": ({"messages": MESSAGES, "max_tokens": "5"}, "max_tokens", "valid integer"),
    "nan": ({"messages": MESSAGES, "top_p": 0}, "top_p", "greater than 0"),
    "no messages": ({"messages": []}, "messages", "at least 1"),
    "missing messages": ({}, "messages", "missing required field 'messages'"),
    "unknown field": ({"messages": MESSAGES, "temprature": 1}, "temprature", "unknown field 'temprature'"),
    "unknown nested field": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "bold": True}]}]},
        "messages[0].content[0].bold",
        "unknown field",
    ),
    "unknown modality": ({"messages": MESSAGES, "modalities": ["smell"]}, "modalities[0]", "'text', 'image', 'audio'"),
    "unknown part": (
        {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
        "messages[0].content[0]",
        "one of",
    ),
    "content of no kind": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "string or a list"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0]", "needs content"),
    "empty content": ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "needs content"),
    "unknown role": ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user'"),
    "too many choices": ({"messages": MESSAGES, "n": 99}, "n", "less than or equal to 16"),
    "five stops": ({"messages": MESSAGES, "stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    "two limits": ({"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 2}, None, "differ"),
    "stream options alone": ({"messages": MESSAGES, "stream_options": {"include_usage": True}}, None, "stream=true"),
    "tools": ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools", "not supported by this model"),
    "penalty": ({"messages": MESSAGES, "frequency_penalty": 2.5}, "frequency_penalty", "less than or equal to 2"),
    "min_p": ({"messages": MESSAGES, "min_p": 1.5}, "min_p", "less than or equal to 1"),
    "repetition": ({"messages": MESSAGES, "repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    "bias": ({"messages": MESSAGES, "logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
    "bias by word": ({"messages": MESSAGES, "logit_bias": {"red": 1}}, "logit_bias.red.[key]", "valid integer"),
    "21 alternatives": (
        {"messages": MESSAGES, "logprobs": True, "top_logprobs": 21},
        "top_logprobs",
        "less than or equal to 20",
    ),
    "alternatives alone": (
        {"messages": MESSAGES, "top_logprobs": 3},
        "top_logprobs",
        "top_logprobs needs logprobs=true",
    ),
    "mp3 output": ({"messages": MESSAGES, "audio": {"format": "mp3", "voice": "a"}}, "audio.format", "'wav'"),
    "foreign url": ({"messages": image("https://example.com/cat.png")}, None, "upload it with POST /v1/media"),
    "file url": ({"messages": image("file:///etc/passwd")}, None, "fetches nothing"),
    "own path on a foreign host": (
        {"messages": image(f"http://evil.example/v1/media/{'a' * 64}")},
        None,
        "fetches nothing",
    ),
    "malformed base64": ({"messages": image("data:image/png;base64,@@@")}, None, "not valid base64"),
    "data url without base64": ({"messages": image("data:image/png,abc")}, None, "base64"),
    "empty file": ({"messages": image("data:image/png;base64,")}, None, "empty"),
    "no image": ({"messages": image(encoded(b"just words"))}, None, "none of the formats"),
    "broken image": ({"messages": image(encoded(b"\x89PNG\r\n\x1a\nrest"))}, None, "cannot be decoded"),
    "too many pixels": ({"messages": image(encoded(bomb(6000)))}, None, "scale it down"),
    "decompression bomb": ({"messages": image(encoded(bomb(60000)))}, None, "bomb"),
    "sound as image": ({"messages": image("data:audio/wav;base64,UklGRg==")}, None, "carries audio/wav"),
    "audio id of nobody": (
        {"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}]},
        "messages[0].audio",
        "not from an answer",
    ),
    "bad conversation id": ({"messages": MESSAGES, "conversation_id": "a b"}, "conversation_id", "pattern"),
}


async def test_a_bad_chat_request_is_a_400_that_names_the_field(world: Any) -> None:
    for case, (body, param, sentence) in BAD.items():
        reply = await world.http.post("/v1/chat/completions", json=body)
        assert reply.status_code == 400, (case, reply.text)
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, case
        assert error["type"] == "invalid_request_error", case
        assert sentence in error["message"], (case, error["message"])
        assert param is None or error["param"] == param, (case, error["param"])
    assert world.policy.requests == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    ("field", "path"),
    [
        *((name, name) for name in ("temperature", "presence_penalty", "frequency_penalty", "repetition_penalty")),
        *((name, name) for name in ("top_p", "min_p")),
        ("logit_bias", "logit_bias.5"),
    ],
)
async def test_a_number_that_is_none_is_refused_by_its_path(world: Any, field: str, path: str, number: str) -> None:
    value = f'{{"5": {number}}}' if field == "logit_bias" else number
    body = f'{{"messages": {json.dumps(MESSAGES)}, "{field}": {value}}}'
    reply = await world.http.post(
        "/v1/chat/completions", content=body.encode(), headers={"content-type": "application/json"}
    )
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, path), reply.text
    assert world.policy.requests == []


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{not json", {"content-type": "application/json"}, 400),
        (b'{"messages": ' + b"[" * 5000, {"content-type": "application/json"}, 400),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
            {"content-type": "application/json"},
            400,
        ),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', {"content-type": "application/json"}, 400),
        (b"[]", {"content-type": "application/json"}, 400),
        (b"", {"content-type": "application/json"}, 400),
        (b"a=b", {"content-type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_a_body_that_is_no_request_is_refused(
    world: Any, content: bytes, headers: dict[str, str], status: int
) -> None:
    reply = await world.http.post("/v1/chat/completions", content=content, headers=headers)
    assert reply.status_code == status, reply.text
    assert reply.json()["error"]["message"]


async def test_a_body_over_the_limit_is_refused_with_and_without_its_length(start: Any) -> None:
    world = await start(max_body_bytes=10_000)
    body = json.dumps({"messages": [{"role": "user", "content": "x" * 20_000}]}).encode()

    async def unannounced() -> Any:
        for begin in range(0, len(body), 1000):
            yield body[begin : begin + 1000]

    headers = {"content-type": "application/json"}
    for content in (body, unannounced()):
        reply = await world.http.post("/v1/chat/completions", content=content, headers=headers)
        assert reply.status_code == 413, reply.text
        assert "POST /v1/media" in reply.json()["error"]["message"]
    assert (await world.say("still here")).is_success


async def test_a_file_over_its_modality_limit_is_413(start: Any, fake: ModuleType) -> None:
    world = await start(max_audio_bytes=1000)
    reply = await world.http.post("/v1/media", content=fake.TONE)
    assert reply.status_code == 413
    assert "send a smaller one" in reply.json()["error"]["message"]


async def test_unknown_media_is_404_and_media_of_another_modality_400(world: Any, fake: ModuleType) -> None:
    reply = await world.http.post("/v1/chat/completions", json={"messages": image(f"/v1/media/{'a' * 64}")})
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "media_not_found")
    uploaded = (await world.http.post("/v1/media", content=fake.TONE)).json()
    reply = await world.http.post("/v1/chat/completions", json={"messages": image(uploaded["url"])})
    assert reply.status_code == 400
    assert "audio/wav, not image" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("words", "status", "kind", "retry_after"),
    [
        ("too long", 400, "invalid_request_error", None),
        ("busy", 429, "rate_limit_error", "3"),
        ("drained", 503, "server_error", "1"),
        ("secret crash", 500, "server_error", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_upstream_failures_map_to_http(
    world: Any, words: str, status: int, kind: str, retry_after: str | None, stream: bool
) -> None:
    reply = await world.say(words, stream=stream)
    assert (reply.status_code, reply.json()["error"]["type"]) == (status, kind)
    assert reply.headers.get("retry-after") == retry_after
    assert "secret path" not in reply.text


async def test_every_attempt_at_an_answer_has_its_own_number(world: Any) -> None:
    """The gateway asks a second time, and gRPC sends each call up to five times: replicas may answer into the void."""
    await world.say("drained")
    attempts = world.policy.attempts
    assert attempts == sorted(set(attempts))
    assert attempts[0] == 0
    assert attempts[-1] >= 5


async def test_a_policy_service_that_hangs_is_504(start: Any) -> None:
    world = await start(request_timeout_s=0.3)
    reply = await world.say("silence")
    assert reply.status_code == 504
    await asyncio.wait_for(world.policy.cancelled.wait(), 5)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/feedback", 405)])
async def test_unknown_routes_and_methods_have_openai_errors(world: Any, method: str, path: str, status: int) -> None:
    reply = await world.http.request(method, path)
    assert (reply.status_code, set(reply.json())) == (status, {"error"})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/images/generations", {"prompt": "x", "size": "1024x1024"}, "size"),
        ("/v1/images/generations", {"prompt": "x", "stream": True}, "stream"),
        ("/v1/images/generations", {"prompt": ""}, "prompt"),
        ("/v1/audio/speech", {"input": "x", "voice": "alloy", "response_format": "mp3"}, "response_format"),
        ("/v1/audio/speech", {"input": "x", "voice": "alloy", "speed": 2}, "speed"),
        ("/v1/audio/speech", {"input": "x", "emotion": 2}, "emotion"),
    ],
)
async def test_single_modality_routes_name_what_they_cannot_do(
    world: Any, path: str, body: dict[str, Any], param: str
) -> None:
    reply = await world.http.post(path, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


async def test_uploads_are_recognised_by_their_bytes(world: Any, fake: ModuleType) -> None:
    form = {"file": ("clip.txt", io.BytesIO(fake.CLIP), "text/plain")}
    uploaded = (await world.http.post("/v1/media", files=form)).json()
    assert (uploaded["mime_type"], uploaded["modality"], uploaded["bytes"]) == ("video/mp4", "video", len(fake.CLIP))
    for request, status in (
        ({"content": b"words"}, 415),
        ({"content": b""}, 400),
        ({"files": {"other": ("a", b"b")}}, 400),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, 400),
    ):
        reply = await world.http.post("/v1/media", **request)
        assert (reply.status_code, set(reply.json())) == (status, {"error"}), reply.text


async def test_a_prompt_larger_than_the_policy_takes_is_no_invitation_to_try_again(world: Any) -> None:
    messages = [{"role": "user", "content": "x" * 900_000} for _ in range(5)]
    answer = await world.http.post("/v1/chat/completions", json={"messages": messages})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "shorten the conversation" in error["message"]
    assert world.policy.requests == []
