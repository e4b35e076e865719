"""The connection to an API server that behaves badly: a small server that says what a test gives it."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kubernetes.aio.client import ApiClient, Configuration

from k8s import cluster
from k8s.api import PODS, ApiError
from k8s.cluster import Cluster


@asynccontextmanager
async def talking_to(*lines: bytes) -> AsyncIterator[Cluster]:
    """A server that sends these lines of a watch and is silent ever after."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for line in lines:
            writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
        await writer.drain()
        await reader.read()  # until the client gives up
        writer.close()
        await writer.wait_closed()
        left.set()

    left = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = ApiClient(Configuration(host=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"))
    try:
        yield Cluster(client, "shop")
    finally:
        await client.close()
        server.close()
        await left.wait()


async def test_a_watch_of_a_server_that_died_without_a_word_breaks_after_the_bookmarks_are_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert 60 < cluster._SILENT_SECONDS < 180  # two bookmarks, which come each minute, are missing
    monkeypatch.setattr(cluster, "_SILENT_SECONDS", 0.2)
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}}
    async with talking_to(json.dumps(bookmark).encode() + b"\n") as api:
        events = api.watch(PODS, "shop", "1", seconds=600)
        assert await anext(events) == bookmark
        with pytest.raises(ApiError, match="the watch of pods broke") as broke:
            async with asyncio.timeout(5):
                await anext(events)
    assert broke.value.retriable
    assert not broke.value.gone
