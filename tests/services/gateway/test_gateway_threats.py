"""What somebody with a valid key, or none, might try; docs/security.md names these tests."""

import io
import logging
from pathlib import Path
from typing import Any

import grpc
import pytest
from PIL import Image

from anyloop.keyfile import ApiKey, Principal, Quotas, Role, hash_key, write_keys
from anyloop.telemetry.logs import JsonFormatter
from protos.anyloop.v1 import policy_pb2, policy_pb2_grpc, types_pb2

SAYS = {"messages": [{"role": "user", "content": "hello"}]}
SECRET = "the patient is called Mallory"


def picture_message(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/computeMetadata/v1/",
        "http://[::ffff:169.254.169.254]/",
        "http://10.0.0.1:8080/v1/media/" + "a" * 64,
        "http://kubernetes.default.svc/api",
        "file:///etc/passwd",
        "s3://bucket/key",
        "gopher://127.0.0.1:6379/_FLUSHALL",
        "//evil.example/v1/media/" + "a" * 64,
        "http://127.0.0.1@evil.example/v1/media/" + "a" * 64,
        "/v1/media/../../etc/passwd",
        "/v1/media/" + "A" * 64,
    ],
)
async def test_no_url_makes_the_gateway_fetch_anything(world: Any, url: str) -> None:
    reply = await world.http.post("/v1/chat/completions", json=picture_message(url))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "foreign_url")
    assert world.policy.requests == []


@pytest.mark.parametrize(
    "path", ["..%2F..%2Flog.db", "%2e%2e/%2e%2e/log.db", "....//log.db", "a" * 63 + "%00", "%2Fetc%2Fpasswd", "a" * 65]
)
async def test_no_media_id_becomes_a_path(world: Any, path: str) -> None:
    reply = await world.http.get(f"/v1/media/{path}")
    assert reply.status_code == 404
    assert b"SQLite" not in reply.content
    assert b"root:" not in reply.content


async def test_a_compressed_request_cannot_grow_beyond_the_limit(start: Any) -> None:
    """1.4 MB of gzip that would be 300 MB: refused while it is unpacked, and the gateway goes on."""
    world = await start(max_body_bytes=4 * 2**20)
    media = types_pb2.InlineMedia(mime_type="image/png", data=bytes(300 * 2**20))
    bomb = policy_pb2.GenerateRequest(
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(inline_media=media)])]
    )
    options = [("grpc.max_send_message_length", -1)]
    target = f"127.0.0.1:{world.settings.edge_grpc_port}"
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(bomb, compression=grpc.Compression.Gzip)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in str(refused.value.details())
    assert (await world.say("hello")).status_code == 200


async def test_an_archive_as_a_body_is_not_unpacked(world: Any) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    reply = await world.http.post("/v1/chat/completions", content=b"\x1f\x8b\x08\0\0\0\0\0", headers=headers)
    assert reply.status_code == 400


async def test_a_jpeg_of_endless_scans_is_refused_by_upload_and_in_a_prompt(world: Any) -> None:
    out = io.BytesIO()
    Image.new("RGB", (2048, 2048)).save(out, "JPEG", progressive=True)
    whole = out.getvalue()
    bomb = whole[:-2] + whole[whole.rfind(b"\xff\xda") : -2] * 3000 + b"\xff\xd9"
    reply = await world.http.post("/v1/media", content=bomb, headers={"Content-Type": "application/octet-stream"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_media")
    assert "scans" in reply.json()["error"]["message"]


async def test_logs_hold_neither_what_people_write_nor_their_keys(
    start: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.toml"
    key = "al-not-for-logs"
    roles = frozenset({Role.GENERATE, Role.FEEDBACK})
    write_keys(path, {"app": Principal("app", roles, Quotas(), (ApiKey(hash_key(key)),))})
    caplog.set_level(logging.DEBUG)
    world = await start(keys_file=path)
    headers = {"Authorization": f"Bearer {key}"}
    post = world.http.post
    body = {"messages": [{"role": "user", "content": SECRET}]}
    answer = (await post("/v1/chat/completions", json=body, headers=headers)).json()
    await post("/v1/chat/completions", json={**body, "temperature": SECRET}, headers=headers)  # refused
    await post("/v1/chat/completions", content=f'{{"messages": "{SECRET}', headers=headers)  # not JSON
    await post("/v1/feedback", json={"response_id": answer["id"], "critique": SECRET}, headers=headers)
    await post("/v1/feedback", json={"response_id": SECRET, "critique": SECRET}, headers=headers)  # refused
    crash = {"messages": [{"role": "user", "content": "secret crash"}]}
    assert (await post("/v1/chat/completions", json=crash, headers=headers)).status_code == 500
    await post("/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {key}x"})
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore", "openai"))]
    assert ours, "nothing was logged, so nothing was tried"
    text = "\n".join(JsonFormatter("gateway").format(record) for record in ours)
    assert SECRET not in text
    assert key not in text


async def test_an_error_of_the_inside_tells_a_client_nothing_of_it(world: Any) -> None:
    reply = await world.say("secret crash")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text


async def test_a_client_cannot_name_its_principal(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    roles = frozenset({Role.GENERATE})
    write_keys(path, {"app": Principal("app", roles, Quotas(), (ApiKey(hash_key("k")),))})
    world = await start(keys_file=path)
    request = policy_pb2.GenerateRequest(
        principal="boss",
        messages=[types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="hello")])],
    )
    async with world.channel() as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(request, metadata=(("authorization", "Bearer k"),))
        assert [event async for event in call]
    assert [one.principal for one in world.policy.requests] == ["app"]


async def test_a_token_prompt_that_could_hold_what_no_text_can_needs_an_operator(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    roles = frozenset({Role.GENERATE})
    write_keys(path, {"app": Principal("app", roles, Quotas(), (ApiKey(hash_key("k")),))})
    world = await start(keys_file=path)
    async with world.channel() as channel:
        call = policy_pb2_grpc.PolicyServiceStub(channel).Generate(
            policy_pb2.GenerateRequest(prompt_token_ids=[1, 2, 3]), metadata=(("authorization", "Bearer k"),)
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_served_media_cannot_run_as_a_page(world: Any) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    stored = (await world.http.post("/v1/media", content=out.getvalue() + b"<script>alert(1)</script>")).json()
    reply = await world.http.get(f"/v1/media/{stored['id']}")
    assert reply.headers["content-type"] == "image/png"
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in reply.headers["content-security-policy"]
    html = await world.http.post("/v1/media", content=b"<html><script>alert(1)</script></html>")
    assert html.status_code == 415
