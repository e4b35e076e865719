"""The client's half of a session, against a program in place of Triton: order, loss, slow readers, ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata
from tritonclient.utils import InferenceServerException

from services.hosts import triton_session
from services.hosts.interface import HostError
from services.hosts.payload import TENSOR, pack, unpack
from services.hosts.triton_host import TritonHost
from services.hosts.triton_session import TritonSession


class Result:
    """As tritonclient's InferResult."""

    def __init__(self, request_id: str, payload: dict[str, Any] | None, final: bool) -> None:
        self.id = request_id
        self.parameters = {"triton_final_response": SimpleNamespace(bool_param=final)}
        self._data = None if payload is None else np.frombuffer(pack(payload), np.uint8)

    def get_response(self) -> Result:
        return self

    def as_numpy(self, name: str) -> np.ndarray | None:
        assert name == TENSOR
        return self._data


class FakeTriton:
    """Keeps what is asked; a test says what is answered."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.cancelled = False
        self._answers: asyncio.Queue[Result | Exception] = asyncio.Queue()

    def stream_infer(self, inputs: AsyncIterator[dict[str, Any]]) -> FakeTriton:
        self._reading = asyncio.create_task(self._read(inputs))
        return self

    async def _read(self, inputs: AsyncIterator[dict[str, Any]]) -> None:
        async for message in inputs:
            assert message["model_name"] == "policy"
            self.asked.put_nowait(unpack(message["inputs"][0]._get_content()))

    def say(self, payload: dict[str, Any] | None, request_id: str = "0", final: bool = False) -> None:
        self._answers.put_nowait(Result(request_id, payload, final))

    def tokens(self, **by_stream: list[int]) -> None:
        """One message with tokens of streams named like `s1`."""
        flat = [token for tokens in by_stream.values() for token in tokens]
        self.say(
            {
                "streams": [int(name[1:]) for name in by_stream],
                "counts": np.array([len(tokens) for tokens in by_stream.values()], np.int32),
                "tokens": np.array(flat, np.int32),
                "logprobs": np.full(len(flat), -0.5, np.float32),
                "versions": ["v0"] * len(by_stream),
            }
        )

    def fail(self, error: Exception) -> None:
        self._answers.put_nowait(error)

    def cancel(self) -> None:
        self.cancelled = True
        self._answers.put_nowait(InferenceServerException("cancelled", status="StatusCode.CANCELLED"))

    def __aiter__(self) -> FakeTriton:
        return self

    async def __anext__(self) -> tuple[Result, None]:
        answer = await self._answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer, None


@pytest.fixture
def triton() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
async def session(triton: FakeTriton) -> AsyncIterator[TritonSession]:
    session = TritonSession(triton, "policy")  # type: ignore[arg-type]
    attach = await triton.asked.get()
    assert (attach["op"], attach["model"]) == ("attach", "policy")
    yield session
    await session.close()


def collecting(session: TritonSession, timeout: float | None = None) -> asyncio.Task[list[int]]:
    async def collect() -> list[int]:
        tokens: list[int] = []
        async for answer in session.generate({"op": "generate", "prompt": [1]}, timeout):
            tokens.extend(answer["tokens"].tolist() if "tokens" in answer else [])
        return tokens

    return asyncio.create_task(collect())


async def test_each_stream_gets_its_part_of_a_message(triton: FakeTriton, session: TritonSession) -> None:
    first, second = collecting(session), collecting(session)
    asked = [await triton.asked.get() for _ in range(2)]
    assert [(one["op"], one["stream"]) for one in asked] == [("generate", 1), ("generate", 2)]
    assert asked[0]["session"] == asked[1]["session"]
    triton.say({}, "1", final=True)
    triton.tokens(s1=[10, 11], s2=[20])
    triton.tokens(s9=[90], s2=[21])  # a stream that was left says something still
    triton.say({"ends": [[1, {"finished": "stop"}], [2, {"finished": "length"}]]})
    assert (await first, await second) == ([10, 11], [20, 21])


async def test_a_slow_reader_holds_up_nobody(triton: FakeTriton, session: TritonSession) -> None:
    slow = session.generate({"op": "generate"}, None)
    waiting = asyncio.create_task(anext(slow))
    quick = collecting(session)
    for token in range(300):
        triton.tokens(s1=[token], s2=[token])
    triton.say({"ends": [[2, {"finished": "length"}]]})
    assert await quick == list(range(300))
    assert (await waiting)["tokens"].tolist() == [0]
    assert (await anext(slow))["tokens"].tolist() == [1]
    await slow.aclose()


async def test_closing_a_stream_cancels_it_in_the_model(triton: FakeTriton, session: TritonSession) -> None:
    stream = session.generate({"op": "generate"}, None)
    triton.tokens(s1=[1])
    await anext(stream)
    generate = await triton.asked.get()
    await stream.aclose()
    cancel = await asyncio.wait_for(triton.asked.get(), 1.0)
    assert (cancel["op"], cancel["stream"], cancel["session"]) == ("cancel", 1, generate["session"])


async def test_a_deadline_cancels_while_nothing_comes(triton: FakeTriton, session: TritonSession) -> None:
    with pytest.raises(HostError, match=r"did not answer within 0.02 s") as late:
        await collecting(session, 0.02)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert [(await triton.asked.get())["op"] for _ in range(2)] == ["generate", "cancel"]


async def test_a_refused_request_ends_alone(triton: FakeTriton, session: TritonSession) -> None:
    refused, other = collecting(session), collecting(session)
    full = HostError("RESOURCE_EXHAUSTED", "full", retry_after_s=4.0)
    await asyncio.sleep(0)
    triton.say(full.to_payload(), "1")
    triton.tokens(s2=[5])
    triton.say({"ends": [[2, {"finished": "stop"}]]})
    with pytest.raises(HostError, match="full") as error:
        await refused
    assert (error.value.retriable, error.value.retry_after_s) == (True, 4.0)
    assert await other == [5]


@pytest.mark.parametrize(
    "loss",
    [
        InferenceServerException("Socket closed", status="StatusCode.UNAVAILABLE"),
        InferenceServerException("reset by a proxy", status="StatusCode.CANCELLED"),
        InferenceServerException("too old for a proxy", status="StatusCode.DEADLINE_EXCEEDED"),
        AioRpcError(StatusCode.CANCELLED, Metadata(), Metadata(), details="reset by a proxy"),
        AioRpcError(StatusCode.DEADLINE_EXCEEDED, Metadata(), Metadata(), details="too old for a proxy"),
        HostError("UNAVAILABLE", "the model is being unloaded"),
        HostError("CANCELLED", "the session was cancelled"),
        StopAsyncIteration(),
    ],
)
async def test_all_streams_of_a_lost_session_may_be_tried_again(
    triton: FakeTriton, session: TritonSession, loss: Exception
) -> None:
    streams = [collecting(session) for _ in range(3)]
    await asyncio.sleep(0)
    if isinstance(loss, HostError):
        triton.say(loss.to_payload(), final=True)  # the model's last word on the session
    else:
        triton.fail(loss)
    for stream in streams:
        with pytest.raises(HostError) as lost:
            await stream
        assert (lost.value.code, lost.value.retriable) == ("UNAVAILABLE", True)
    assert session.ended


@pytest.mark.parametrize("payload", [None, {}])
async def test_the_end_of_the_request_that_attached_ends_the_session(
    triton: FakeTriton, payload: dict[str, Any] | None
) -> None:
    host = TritonHost("127.0.0.1:9", ["policy"])
    host._client.stream_infer = triton.stream_infer

    async def tokens() -> list[int]:
        return [token async for answer in host.stream("policy", {"op": "generate"}) for token in answer["tokens"]]

    streams = [asyncio.create_task(tokens()) for _ in range(2)]
    first = [await triton.asked.get() for _ in range(3)]
    triton.tokens(s1=[5])
    triton.say(payload, final=True)
    for stream in streams:
        with pytest.raises(HostError) as lost:
            await asyncio.wait_for(stream, 1.0)
        assert (lost.value.code, lost.value.retriable) == ("UNAVAILABLE", True)
    again = asyncio.create_task(tokens())
    attach = await asyncio.wait_for(triton.asked.get(), 1.0)
    assert attach["op"] == "attach"
    assert attach["session"] != first[0]["session"]
    again.cancel()
    await asyncio.gather(again, return_exceptions=True)
    await host.close()


async def test_an_idle_session_leaves_the_model(triton: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_session, "IDLE_SECONDS", 0.05)
    session = TritonSession(triton, "policy")  # type: ignore[arg-type]
    for number in (1, 2):
        stream = collecting(session)
        # The second comes within the first one's idle time, and stays for longer than that.
        await asyncio.sleep(0.15)
        assert not session.ended
        triton.say({"ends": [[number, {"finished": "stop"}]]})
        await stream
        assert not session.ended
    await asyncio.sleep(0.1)
    assert session.ended
    assert triton.cancelled
    await session.close()


async def test_closing_the_host_ends_the_streams(triton: FakeTriton, session: TritonSession) -> None:
    stream = collecting(session)
    await asyncio.sleep(0)
    await session.close()
    with pytest.raises(HostError, match="the model host is closed"):
        await stream
    assert triton.cancelled
