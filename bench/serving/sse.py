"""A light client of streamed chat completions: asyncio streams, one kept connection, nothing parsed while it measures.

It shares the machine's cores with the servers, so it does as little as it can: it stamps the time on whatever a read
brings, and takes the HTTP chunks and the events apart when the run is over. One client for every server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.serving.stats import Answer, apportion

_END = b"0\r\n\r\n"  # the last chunk; JSON holds no bare line ends, so nothing else looks like it


@dataclass
class Raw:
    """What came over the wire for one request: bytes with the time of the read that brought them."""

    asked: float
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""


class Connection:
    """One client's connection, kept between its requests and opened anew when the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, body: dict[str, Any], timeout: float) -> Raw:  # noqa: ASYNC109
        payload = json.dumps(body).encode()
        host, port = self._address
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            f"Accept: text/event-stream\r\nContent-Length: {len(payload)}\r\n\r\n"
        )
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection(*self._address)
        raw = Raw(time.perf_counter())
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(head.encode() + payload)
                await self._read(raw)
        except (OSError, TimeoutError) as error:
            raw.error = f"{type(error).__name__}: {error}"
        if raw.error:
            self.close()
        return raw

    async def _read(self, raw: Raw) -> None:
        assert self._reader is not None
        tail = b""
        while not tail.endswith(_END):
            data = await self._reader.read(65536)
            raw.reads.append((time.perf_counter(), data))
            if not data:
                raw.error = "the server closed the connection"
                return
            if not tail and not data.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
                raw.error = data[:600].decode(errors="replace")
                return
            tail = (tail + data)[-len(_END) :]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None


def answer_of(raw: Raw) -> Answer:
    """Tokens per read: the text of its events, and the usage of the last event shared out by characters."""
    answer = Answer(raw.asked, error=raw.error)
    if raw.error:
        return answer
    decoder = _Events()
    characters: list[int] = []
    total = 0
    for at, data in raw.reads:
        text = ""
        for event in decoder.feed(data):
            if "error" in event:
                answer.error = json.dumps(event["error"])
                return answer
            for choice in event.get("choices") or ():
                text += choice["delta"].get("content") or ""
            total = (event.get("usage") or {}).get("completion_tokens", total)
        if text:
            answer.arrivals.append(at)
            characters.append(len(text))
            answer.text += text
    answer.counts = apportion(characters, total)
    return answer


class _Events:
    """HTTP/1.1 chunks to the JSON of the server-sent events in them."""

    def __init__(self) -> None:
        self._bytes = b""
        self._body = b""
        self._head = True

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        self._bytes += data
        if self._head:
            _, separator, rest = self._bytes.partition(b"\r\n\r\n")
            if not separator:
                return
            self._head, self._bytes = False, rest
        while (end := self._bytes.find(b"\r\n")) >= 0:
            size = int(self._bytes[:end], 16)
            begin = end + 2
            if len(self._bytes) < begin + size + 2:
                break
            self._body += self._bytes[begin : begin + size]
            self._bytes = self._bytes[begin + size + 2 :]
        *whole, self._body = self._body.split(b"\n\n")
        for event in whole:
            data = event.removeprefix(b"data: ")
            if data != b"[DONE]":
                yield json.loads(data)
