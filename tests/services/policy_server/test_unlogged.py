"""Answers whose record the outbox cannot take: served and counted, or refused, as the setting says."""

import asyncio
import gc
import logging
import time
from pathlib import Path

import grpc
import pytest
from prometheus_client import REGISTRY

from anyloop.log import RESPONSES, Event, EventTooLarge, LogError
from protos.anyloop.v1 import events_pb2, policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.replica.recorder import Recorder, Unlogged
from services.rpc.errors import RpcError
from tests.services.running_replica import Running, running, settings_for, user


def unlogged() -> float:
    return REGISTRY.get_sample_value("anyloop_unlogged_responses_total") or 0.0


async def answer(policy: Running, **fields: object) -> list[str | None]:
    request = policy_pb2.GenerateRequest(
        messages=[user("Hi")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(max_tokens=3, seed=1),
        **fields,
    )
    return [
        event.WhichOneof("event") async for event in PolicyServiceStub(policy.channel).Generate(request, timeout=30)
    ]


async def test_a_full_outbox_lets_answers_end_and_counts_them(
    tmp_path: Path, random_omni: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(settings_for(tmp_path, random_omni, spool_max_bytes=1)) as policy:
        before = unlogged()
        for _ in range(3):
            assert (await answer(policy))[-1] == "finished"
        assert unlogged() == before + 3
        assert list(policy.log.read(RESPONSES)) == []
        assert await policy.health() == 1
    assert [one.message for one in caplog.records if "without a record" in one.message] == [
        f"1 answers were served without a record: the outbox {tmp_path / 'spool' / 'policy'} holds 0 bytes that the "
        "log has not taken (bound 1): is the log reachable?"
    ]


async def test_a_full_outbox_refuses_requests_before_they_begin_where_a_record_is_a_must(
    tmp_path: Path, random_omni: Path
) -> None:
    settings = settings_for(tmp_path, random_omni, spool_max_bytes=1, unlogged_responses="refuse")
    async with running(settings) as policy:
        before = unlogged()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await answer(policy)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "answers cannot be recorded now: the outbox holds 0 bytes" in str(caught.value.details())
        assert ("retry-after-ms", "5000") in [(key, value) for key, value in caught.value.trailing_metadata() or ()]
        assert (await answer(policy, unlogged=True))[-1] == "finished"
        assert unlogged() == before


class Disk:
    """An outbox whose disk can be full, or slow."""

    def __init__(self) -> None:
        self.full, self.slow = False, 0.0
        self.largest = 1_000_000
        self.taken: list[str] = []

    def put(self, topic: str, event: Event) -> None:
        time.sleep(self.slow)
        if self.full:
            raise LogError("the disk is full", retriable=True)
        if len(event.data) > self.largest:
            raise EventTooLarge(f"{len(event.data)} bytes")
        self.taken.append(event.id)

    def refuses(self) -> str | None:
        return "the disk is full" if self.full else None


@pytest.mark.parametrize("setting", ["serve", "refuse"])
async def test_a_disk_that_fills_while_an_answer_runs(setting: Unlogged) -> None:
    disk = Disk()
    recorder = Recorder(disk, "tests", setting)  # type: ignore[arg-type]
    recorder.admit()
    disk.full = True
    before = unlogged()
    if setting == "serve":
        recorder.admit()
        await recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", "1")
        assert unlogged() == before + 1
    else:
        with pytest.raises(RpcError, match="the disk is full"):
            await recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", "1")
        with pytest.raises(RpcError, match="the disk is full"):
            recorder.admit()
        assert unlogged() == before
    disk.full = False
    recorder.admit()
    await recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", "2")
    assert disk.taken == ["2"]
    recorder.close()


async def test_the_log_hears_of_unrecorded_answers_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    disk = Disk()
    disk.full = True
    recorder = Recorder(disk, "tests")  # type: ignore[arg-type]
    with caplog.at_level(logging.ERROR):
        for number in range(50):
            await recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", str(number))
    assert len(caplog.records) == 1
    recorder.close()


async def test_who_is_cancelled_is_recorded_all_the_same() -> None:
    disk = Disk()
    disk.slow = 0.1
    recorder = Recorder(disk, "tests")  # type: ignore[arg-type]
    recording = asyncio.create_task(recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", "1"))
    await asyncio.sleep(0.02)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    recorder.close()
    assert disk.taken == ["1"]


@pytest.mark.parametrize("setting", ["serve", "refuse"])
async def test_an_unrecorded_answer_whose_client_left_is_counted(setting: Unlogged) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    disk = Disk()
    disk.full, disk.slow = True, 0.1
    recorder = Recorder(disk, "tests", setting)  # type: ignore[arg-type]
    before = unlogged()
    recording = asyncio.create_task(recorder.record(RESPONSES, events_pb2.ResponseEvent(), "k", "1"))
    await asyncio.sleep(0.02)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    await asyncio.to_thread(recorder.close)
    await asyncio.sleep(0.01)
    gc.collect()
    assert unlogged() == before + 1
    assert complaints == []


async def test_an_answer_too_large_for_the_log_is_not_to_be_asked_again() -> None:
    disk = Disk()
    disk.largest = 10
    recorder = Recorder(disk, "tests", "refuse")  # type: ignore[arg-type]
    long = events_pb2.ResponseEvent(response_id="x" * 100)
    with pytest.raises(RpcError, match=r"too large for the log .*: shorten the conversation") as caught:
        await recorder.record(RESPONSES, long, "k", "1")
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    recorder.close()
