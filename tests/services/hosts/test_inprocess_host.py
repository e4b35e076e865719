"""The in-process host: streams, single answers, errors and cancellation of any program."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anyloop.config import Settings
from services.hosts import HostError, open_host
from services.hosts.inprocess_host import InprocessHost
from services.hosts.program import CallProgram, Cancel, Send
from tests.models.random_omni import build_random_omni


class Counter:
    """A program that counts up to `to`, or for ever, from a thread of its own."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.closed = False

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        def run() -> None:
            for number in range(request["to"]):
                send({"number": number}, False)
            if request.get("fail"):
                send(HostError("NOT_FOUND", "nothing here").to_payload(), True)
            elif not request.get("hang"):
                send({"number": request["to"]}, True)

        threading.Thread(target=run).start()
        return self.cancelled.set

    def close(self) -> None:
        self.closed = True


async def test_answers_come_in_order_and_the_stream_ends_with_the_last() -> None:
    program = Counter()
    host = InprocessHost({"policy": program})
    assert [answer["number"] async for answer in host.stream("policy", {"to": 3})] == [0, 1, 2, 3]
    assert not program.cancelled.is_set()
    await host.close()
    assert program.closed
    assert not await host.ready()


async def test_an_error_payload_is_raised_with_its_code() -> None:
    host = InprocessHost({"policy": Counter()})
    with pytest.raises(HostError, match="nothing here") as error:
        await host.call("policy", {"to": 0, "fail": True})
    assert (error.value.code, error.value.retriable) == ("NOT_FOUND", False)


async def test_closing_the_stream_early_cancels() -> None:
    program = Counter()
    host = InprocessHost({"policy": program})
    stream = host.stream("policy", {"to": 5, "hang": True})
    await anext(stream)
    assert not program.cancelled.is_set()
    await stream.aclose()
    assert program.cancelled.is_set()


async def test_cancelling_the_waiting_task_cancels_the_request() -> None:
    program = Counter()
    host = InprocessHost({"policy": program})
    task = asyncio.create_task(host.call("policy", {"to": 0, "hang": True}))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert program.cancelled.is_set()


async def test_a_deadline_cancels_and_says_so() -> None:
    program = Counter()
    host = InprocessHost({"policy": program})
    with pytest.raises(HostError) as late:
        await host.call("policy", {"to": 0, "hang": True}, timeout=0.01)
    assert late.value.code == "DEADLINE_EXCEEDED"
    assert program.cancelled.is_set()


async def test_a_model_that_is_not_open_is_named() -> None:
    with pytest.raises(HostError, match="'critique' is not open here"):
        await InprocessHost({"policy": Counter()}).call("critique", {})


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (HostError("OUT_OF_RANGE", "m"), "OUT_OF_RANGE"),
        (ValueError("m"), "INVALID_ARGUMENT"),
        (OSError("m"), "INTERNAL"),
    ],
)
async def test_what_a_handler_raises_becomes_a_host_error(raised: Exception, code: str) -> None:
    class Handler:
        def handle(self, request: dict[str, Any]) -> dict[str, Any]:
            raise raised

    host = InprocessHost({"decoder_image": CallProgram(Handler(), "failing")})
    with pytest.raises(HostError, match="m") as error:
        await host.call("decoder_image", {})
    assert error.value.code == code
    await host.close()


async def test_the_codecs_open_from_the_settings(tmp_path: Path) -> None:
    settings = Settings(host="inprocess", model_dir=build_random_omni(tmp_path / "model"))
    host = open_host(settings, ["decoder_audio"])
    decoded = await host.call("decoder_audio", {"op": "decode", "codes": list(range(12))})
    assert decoded["data"].shape == (6144,)
    encoded = await host.call("decoder_audio", {"op": "encode", "data": np.zeros(6144, np.float32)})
    assert len(encoded["codes"]) == 12
    await host.close()


def test_an_unknown_model_name_is_refused() -> None:
    with pytest.raises(ValueError, match="no such model: decoder_smell"):
        open_host(Settings(host="inprocess"), ["decoder_smell"])
