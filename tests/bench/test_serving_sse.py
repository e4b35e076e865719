"""The client of the comparison, against a server that splits its answer at every awkward place."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bench.serving.sse import Connection, answer_of


def _event(text: str = "", tokens: int = 0) -> bytes:
    event: dict[str, object] = {"choices": [{"delta": {"content": text}}]}
    if tokens:
        event = {"choices": [], "usage": {"completion_tokens": tokens}}
    return f"data: {json.dumps(event)}\n\n".encode()


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@asynccontextmanager
async def _server(*pieces: bytes) -> AsyncIterator[int]:
    """Answers every request with `pieces`, a pause between each and the next; closes behind an answer without end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):  # the client has gone
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                for piece in pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.02)
                if not pieces[-1].endswith(END):
                    return

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
    await asyncio.sleep(0.05)  # for the connections to end with their clients


async def test_tokens_of_a_read_arrive_with_it_and_sum_to_the_usage() -> None:
    whole = HEAD + _chunk(_event("")) + _chunk(_event("abcd") + _event("efgh"))
    rest = _chunk(_event("ijkl")) + _chunk(_event(tokens=3)) + _chunk(b"data: [DONE]\n\n") + END
    async with _server(whole, rest) as port:
        connection = Connection("127.0.0.1", port)
        answer = answer_of(await connection.ask({}, 5.0))
        connection.close()
    assert answer.text == "abcdefghijkl"
    assert answer.counts == [2, 1]
    assert answer.error == ""
    assert answer.asked < answer.arrivals[0] < answer.arrivals[1]


async def test_events_and_chunks_may_be_cut_anywhere_and_the_connection_is_kept() -> None:
    stream = HEAD + _chunk(_event("abcd")[:9]) + _chunk(_event("abcd")[9:]) + _chunk(_event(tokens=1)) + END
    cuts = [stream[at : at + 25] for at in range(0, len(stream), 25)]
    async with _server(*cuts) as port:
        connection = Connection("127.0.0.1", port)
        answers = [answer_of(await connection.ask({}, 5.0)) for _ in range(2)]
        connection.close()
    assert [(answer.text, answer.counts, answer.error) for answer in answers] == [("abcd", [1], "")] * 2


async def test_a_refusal_and_a_cut_stream_are_errors() -> None:
    async with _server(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\n{}") as port:
        refused = answer_of(await Connection("127.0.0.1", port).ask({}, 5.0))
    assert refused.error.startswith("HTTP/1.1 429")
    async with _server(HEAD + _chunk(_event("abcd"))) as port:
        cut = answer_of(await Connection("127.0.0.1", port).ask({}, 5.0))
    assert cut.error == "the server closed the connection"


async def test_an_error_inside_the_stream_is_an_error() -> None:
    event = b'data: {"error": {"message": "gone"}}\n\n'
    async with _server(HEAD + _chunk(event) + END) as port:
        connection = Connection("127.0.0.1", port)
        answer = answer_of(await connection.ask({}, 5.0))
        connection.close()
    assert answer.error == '{"message": "gone"}'
