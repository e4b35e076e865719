"""What a REST request is counted as, whatever its headers said."""

import asyncio
from typing import Any

import pytest
from prometheus_client import REGISTRY

from services.gateway.observer import RequestObserver, broke_off

Messages = list[dict[str, Any]]


def counted(route: str, code: str) -> float:
    labels = {"route": route, "method": "POST", "code": code}
    return REGISTRY.get_sample_value("anyloop_http_requests_total", labels) or 0.0


async def run(app: Any, path: str, received: Messages, headers: Any = ()) -> Messages:
    sent: Messages = []
    scope = {"type": "http", "method": "POST", "path": path, "headers": list(headers)}
    waiting = iter(received)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def routed(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": path})()
        await app(receive, send)

    await RequestObserver(routed)(scope, receive, send)
    return sent


async def stream(send: Any, *, whole: bool) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a", "more_body": True})
    if whole:
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def test_a_whole_answer_counts_as_its_status_and_returns_the_clients_id() -> None:
    async def app(receive: Any, send: Any) -> None:
        await stream(send, whole=True)

    sent = await run(app, "/a", [], [(b"x-request-id", b"mine")])
    assert counted("/a", "200") == 1
    assert (b"x-request-id", b"mine") in sent[0]["headers"]
    assert REGISTRY.get_sample_value("anyloop_http_request_seconds_count", {"route": "/a"}) == 1


async def test_a_stream_that_breaks_off_counts_as_its_error_also_from_a_task_of_its_own() -> None:
    async def app(receive: Any, send: Any) -> None:
        async def fail() -> None:
            broke_off(503)

        await stream(send, whole=True)
        await asyncio.create_task(fail())

    await run(app, "/b", [])
    assert (counted("/b", "200"), counted("/b", "503")) == (0, 1)


async def test_a_client_that_leaves_counts_as_such() -> None:
    async def app(receive: Any, send: Any) -> None:
        await stream(send, whole=False)
        assert (await receive())["type"] == "http.disconnect"

    await run(app, "/c", [{"type": "http.disconnect"}])
    assert (counted("/c", "200"), counted("/c", "499")) == (0, 1)


async def test_a_client_that_leaves_after_the_end_has_its_answer() -> None:
    async def app(receive: Any, send: Any) -> None:
        await stream(send, whole=True)
        await receive()

    await run(app, "/d", [{"type": "http.disconnect"}])
    assert (counted("/d", "200"), counted("/d", "499")) == (1, 0)


async def test_what_nobody_caught_counts_as_500_and_goes_on() -> None:
    async def app(receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await run(app, "/e", [])
    assert counted("/e", "500") == 1


async def test_an_id_is_made_where_none_or_a_bad_one_came() -> None:
    async def app(receive: Any, send: Any) -> None:
        await stream(send, whole=True)

    for headers in ([], [(b"x-request-id", b"two words")]):
        sent = await run(app, "/f", [], headers)
        assert dict(sent[0]["headers"])[b"x-request-id"].startswith(b"req-")
