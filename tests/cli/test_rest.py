import base64
import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from anyloop.cli.exits import CommandError, ExitCode
from anyloop.cli.rest import GatewayClient, RequestFailed, file_part, media_part, reply_of, text_part
from anyloop.modality import Modality

Handler = Callable[[httpx.Request], httpx.Response]

COMPLETION = {
    "id": "chatcmpl-1",
    "system_fingerprint": "policy-000002",
    "choices": [
        {
            "finish_reason": "stop",
            "message": {
                "content": "Here it is.",
                "content_parts": [
                    {"type": "text", "text": "Here it is."},
                    {"type": "image_url", "image_url": {"url": "http://g/v1/media/ab", "mime_type": "image/png"}},
                ],
            },
        }
    ],
    "usage": {"completion_tokens": 21},
}


def _client(handler: Handler) -> GatewayClient:
    client = GatewayClient("http://gateway")
    client._http = httpx.Client(base_url="http://gateway", transport=httpx.MockTransport(handler))
    return client


def test_a_reply_has_id_version_words_and_media() -> None:
    reply = reply_of(COMPLETION)
    assert (reply.id, reply.version, reply.text) == ("chatcmpl-1", "policy-000002", "Here it is.")
    assert [(part.modality, part.url) for part in reply.media] == [(Modality.IMAGE, "http://g/v1/media/ab")]
    assert (reply.finish_reason, reply.completion_tokens) == ("stop", 21)


def test_a_reply_of_text_alone_may_be_a_plain_string() -> None:
    plain = {"id": "x", "choices": [{"message": {"content": "two red circles"}}]}
    assert reply_of(plain).text == "two red circles"
    assert reply_of(plain).media == ()


def test_options_that_are_not_given_are_not_sent() -> None:
    sent: list[dict[str, object]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return httpx.Response(200, json=COMPLETION)

    _client(handler).chat([text_part("hi")], seed=None, modalities=["image"])
    assert sent[0].keys() == {"model", "messages", "modalities"}
    assert sent[0]["messages"] == [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, ExitCode.REFUSED), (404, ExitCode.NOT_FOUND), (500, ExitCode.FAILED), (503, ExitCode.UNREACHABLE)],
)
def test_a_refusal_carries_the_gateways_sentence_and_an_exit_code(status: int, code: ExitCode) -> None:
    body = {"error": {"message": "send smaller media"}}
    with pytest.raises(RequestFailed, match="send smaller media") as refused:
        _client(lambda _: httpx.Response(status, json=body)).chat([text_part("hi")])
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("header", "wait"),
    [({"Retry-After": "7"}, 7.0), ({"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, None), ({}, None)],
)
def test_a_refusal_says_how_long_to_wait(header: dict[str, str], wait: float | None) -> None:
    with pytest.raises(RequestFailed) as refused:
        _client(lambda _: httpx.Response(429, headers=header)).models()
    assert refused.value.retry_after_s == wait


def test_a_failure_that_is_not_json_still_ends_in_a_sentence() -> None:
    with pytest.raises(RequestFailed, match="Bad Gateway"):
        _client(lambda _: httpx.Response(502, text="")).models()


def test_a_stream_yields_chunks_and_ends_at_done() -> None:
    lines = 'data: {"id": "a"}\n\n: comment\n\ndata: {"id": "b"}\n\ndata: [DONE]\n\n'
    chunks = _client(lambda _: httpx.Response(200, text=lines)).chat_stream([text_part("hi")])
    assert [chunk["id"] for chunk in chunks] == ["a", "b"]


def test_an_error_within_a_stream_is_raised() -> None:
    lines = 'data: {"id": "a"}\n\ndata: {"error": {"message": "the model failed"}}\n\n'
    with pytest.raises(RequestFailed, match="the model failed"):
        list(_client(lambda _: httpx.Response(200, text=lines)).chat_stream([text_part("hi")]))


def test_a_data_url_is_opened_without_a_request() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        raise AssertionError(request.url)

    url = media_part(Modality.IMAGE, b"bytes", "image/png")["image_url"]["url"]
    assert url == "data:image/png;base64," + base64.b64encode(b"bytes").decode()
    assert _client(handler).fetch(url) == b"bytes"


def test_a_file_goes_along_under_its_mime_type(tmp_path: Path) -> None:
    (tmp_path / "tone.wav").write_bytes(b"RIFF")
    part = file_part(Modality.AUDIO, tmp_path / "tone.wav")
    assert part["audio_url"]["url"].startswith("data:audio/")


def test_a_file_that_is_missing_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"Cannot read .*none\.png") as missing:
        file_part(Modality.IMAGE, tmp_path / "none.png")
    assert missing.value.code == ExitCode.USAGE
