"""Media downloads, the console, health, and the state of the loop."""

import asyncio
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from grpc_health.v1 import health_pb2

from anyloop.media.formats import write_audio
from anyloop.registry.announce import announce
from anyloop.telemetry.metrics import GATEWAY_READY
from services.gateway import server
from services.gateway.media import PIECE_BYTES


async def upload(world: Any, data: bytes) -> str:
    return str((await world.http.post("/v1/media", content=data)).json()["url"])


async def test_a_file_is_served_whole_with_its_type_and_forever(world: Any, fake: ModuleType) -> None:
    url = await upload(world, fake.CLIP)
    assert url.startswith(world.base)
    reply = await world.http.get(url)
    assert (reply.status_code, reply.content, reply.headers["content-type"]) == (200, fake.CLIP, "video/mp4")
    assert reply.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert reply.headers["x-content-type-options"] == "nosniff"
    again = await world.http.get(url, headers={"if-none-match": reply.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    head = await world.http.head(url)
    assert (head.headers["content-length"], head.headers["accept-ranges"]) == (str(len(fake.CLIP)), "bytes")


async def test_players_get_the_ranges_they_ask_for(world: Any, fake: ModuleType) -> None:
    url, data = await upload(world, fake.CLIP), fake.CLIP
    for header, expected in (
        ("bytes=0-9", data[:10]),
        ("bytes=100-", data[100:]),
        ("bytes=-7", data[-7:]),
        (f"bytes=5-{10**9}", data[5:]),
    ):
        reply = await world.http.get(url, headers={"range": header})
        assert (reply.status_code, reply.content) == (206, expected)
        begin = len(data) - 7 if header == "bytes=-7" else int(header[6:].split("-")[0])
        assert reply.headers["content-range"] == f"bytes {begin}-{begin + len(expected) - 1}/{len(data)}"
    for header in ("bytes=0-1,5-6", "lines=1-2", "bytes=9-2", "bytes=-"):
        assert (await world.http.get(url, headers={"range": header})).status_code == 200
    beyond = await world.http.get(url, headers={"range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416


async def test_a_large_file_goes_out_in_pieces_and_is_whole(world: Any) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 60 * 22_050).astype(np.float32)
    data = write_audio(noise, 22_050)
    assert len(data) > 2 * PIECE_BYTES
    url = await upload(world, data)
    reply = await world.http.get(url)
    assert (reply.status_code, reply.content == data) == (200, True)
    assert reply.headers["content-length"] == str(len(data))
    begin, end = PIECE_BYTES - 5, 2 * PIECE_BYTES + 5
    part = await world.http.get(url, headers={"range": f"bytes={begin}-{end - 1}"})
    assert (part.status_code, part.content == data[begin:end]) == (206, True)
    assert part.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(data)}"


async def test_what_is_not_stored_is_404(world: Any) -> None:
    for name in ("a" * 64, "..%2f..%2fetc%2fpasswd", "A" * 64):
        assert (await world.http.get(f"/v1/media/{name}")).status_code == 404


async def test_media_urls_begin_with_the_public_url_when_there_is_one(start: Any, fake: ModuleType) -> None:
    world = await start(public_url="https://loop.example")
    url = await upload(world, fake.RED)
    assert url.startswith("https://loop.example/v1/media/")
    part = {"type": "image_url", "image_url": {"url": url}}
    assert (await world.say([part])).is_success


async def test_the_console_is_one_page_without_foreign_assets(world: Any) -> None:
    reply = await world.http.get("/")
    assert reply.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", reply.text)
    for used in ("/v1/chat/completions", "/v1/feedback", "/v1/media", "/v1/loop"):
        assert used in reply.text


async def test_loop_status_tells_versions_and_counts(world: Any, fake: ModuleType) -> None:
    announce(world.log, "policy", fake.VERSION, "promoted")
    await world.http.post("/v1/feedback", json={"response_id": "r", "label": True})
    await world.feedback()
    status = (await world.http.get("/v1/loop")).json()
    assert status["policy"]["serving_version"] == fake.VERSION
    assert status["policy"]["weights"][0]["serving"] is True
    assert status["promoted"] == {"policy": fake.VERSION, "critique": None}
    assert status["log"] == {"responses": 0, "feedback": 1, "critiques": 0}


async def test_ready_means_that_the_policy_service_serves(start: Any) -> None:
    world = await start()
    assert (await world.http.get("/health")).json() == {"status": "ok"}
    assert (await world.http.get("/ready")).status_code == 200


async def test_not_ready_says_why(start: Any) -> None:
    world = await start()
    await world.health.enter_graceful_shutdown()
    reply = await world.http.get("/ready")
    assert reply.status_code == 503
    assert reply.json()["reasons"] == ["policy service: no replica serves"]


async def test_the_gauge_follows_readiness_though_nobody_asks_for_it(
    start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def until(value: float) -> None:
        async with asyncio.timeout(5):
            while GATEWAY_READY._value.get() != value:  # noqa: ASYNC110 - the gateway sets it
                await asyncio.sleep(0.01)

    monkeypatch.setattr(server, "_READY_S", 0.02)
    world = await start()
    await until(1)
    await world.health.set("anyloop.v1.PolicyService", health_pb2.HealthCheckResponse.NOT_SERVING)
    await until(0)
    await world.health.set("anyloop.v1.PolicyService", health_pb2.HealthCheckResponse.SERVING)
    await until(1)
    await world.end()
    assert GATEWAY_READY._value.get() == 0


async def test_the_openapi_document_describes_the_bodies(world: Any) -> None:
    document = (await world.http.get("/openapi.json")).json()
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in chat["required"]
    assert "$ref" not in str(chat)
