"""Three real servers behind one channel, under load: one leaves, dies, comes back, and no request fails."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import grpc
import pytest

from anyloop.config import Settings
from anyloop.transport import channel_options, open_channel, open_sync_channel
from protos.anyloop.v1 import policy_pb2, types_pb2
from tests.transport.replicas import SERVICE, Load, Replica, addresses, ask, replicas

PLAIN = Settings(_env_file=None)


@pytest.fixture
async def three() -> AsyncIterator[list[Replica]]:
    async with replicas(3) as made:
        yield made


async def test_calls_go_to_all_replicas_in_turn(three: list[Replica]) -> None:
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel, Load(channel) as load:
        await load.all_answer(*three)
        before = dict(load.by)
        await load.until(lambda by: by.total() >= 300)
        shares = [load.by[replica.name] - before[replica.name] for replica in three]
    assert max(shares) - min(shares) <= 0.1 * sum(shares)
    assert load.failures == load.broken == []


async def test_a_replica_that_says_not_serving_gets_nothing_more_and_its_answers_end(three: list[Replica]) -> None:
    leaving, *others = three
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel, Load(channel) as load:
        await load.all_answer(*three)
        assert leaving.server
        await leaving.server.set_serving(False)
        await asyncio.sleep(0.1)  # what was under way ends
        answered = leaving.answered
        await load.all_answer(*others)
        assert leaving.answered == answered
        await leaving.server.set_serving(True)
        await load.all_answer(leaving)
    assert load.failures == load.broken == []


async def test_a_drained_restart_loses_nothing(three: list[Replica]) -> None:
    """What SIGTERM does, and the new process on the same address."""
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel, Load(channel) as load:
        for replica in three:
            await load.all_answer(*three)
            await replica.stop(grace=5.0)
            await load.until(lambda by: by.total() >= 50)
            await replica.start()
        await load.all_answer(*three)
    assert load.failures == load.broken == []


class Process:
    """A replica that can be killed as the kernel kills."""

    def __init__(self, name: str) -> None:
        self.name, self.port = name, 0

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.transport.replicas", self.name, str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.mark.e2e
async def test_a_killed_replica_loses_no_request_that_waits_for_its_first_token() -> None:
    """All its connections break at once, with some twenty requests on them."""
    processes = [Process(f"process-{index}") for index in range(3)]
    await asyncio.gather(*(asyncio.to_thread(process.start) for process in processes))
    try:
        async with open_channel(PLAIN, addresses(processes), service=SERVICE) as channel:
            async with Load(channel) as load:  # all are connected
                await load.all_answer(*processes)
            assert load.failures == load.broken == []
            waiting = [asyncio.create_task(ask(channel)) for _ in range(60)]
            await asyncio.sleep(0.2)  # all have arrived, and none is answered yet
            processes[0].kill()
            survivors = {process.name for process in processes[1:]}
            assert {await task for task in waiting} == survivors
            await asyncio.to_thread(processes[0].start)
            async with Load(channel) as load:
                await load.all_answer(*processes)
            assert load.failures == load.broken == []
    finally:
        for process in processes:
            process.kill()


async def test_a_large_prompt_is_sent_again_too(three: list[Replica]) -> None:
    """gRPC keeps 256 KiB of a request for another attempt unless told otherwise."""
    prompt = policy_pb2.GenerateRequest(
        messages=[
            types_pb2.Message(role=types_pb2.ROLE_USER, parts=[types_pb2.ContentPart(text="x" * (4 * 2**20 - 4096))])
        ]
    )
    three[0].refuses = True
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel:
        answers = [await ask(channel, prompt) for _ in range(9)]
    assert set(answers) == {three[1].name, three[2].name}
    options = channel_options(PLAIN, addresses(three), service=SERVICE)
    usual = [(name, value) for name, value in options if name != "grpc.per_rpc_retry_buffer_size"]
    async with grpc.aio.insecure_channel(addresses(three), options=usual) as channel:
        outcomes = [await asyncio.gather(ask(channel, prompt), return_exceptions=True) for _ in range(9)]
    assert any(isinstance(outcome, grpc.aio.AioRpcError) for (outcome,) in outcomes)


async def test_nothing_is_repeated_once_the_answer_has_begun(three: list[Replica]) -> None:
    for replica in three:
        replica.speaking = 5.0
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel:
        asking = asyncio.create_task(ask(channel))
        await asyncio.sleep(0.3)
        for replica in three:
            await replica.stop()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asking
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert sum(replica.answered for replica in three) == 0


async def test_with_nobody_there_a_call_fails_soon_and_not_at_its_deadline(three: list[Replica]) -> None:
    """`wait_for_ready` would hold it for ten seconds."""
    async with open_channel(PLAIN, addresses(three), service=SERVICE) as channel:
        await ask(channel)
        for replica in three:
            await replica.stop()
        async with asyncio.timeout(4):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ask(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_call_waits_for_a_single_replica_that_is_back_in_a_moment() -> None:
    async with replicas(1) as (one,), open_channel(PLAIN, f"127.0.0.1:{one.port}", service=SERVICE) as channel:
        await ask(channel)
        assert one.server
        await one.server.set_serving(False)
        asking = asyncio.create_task(ask(channel))
        await asyncio.sleep(0.2)
        await one.server.set_serving(True)
        assert await asking == one.name


def test_a_call_to_one_replica_is_neither_balanced_nor_repeated(three: list[Replica]) -> None:
    names = dict(channel_options(PLAIN, "127.0.0.1:1"))
    assert "grpc.service_config" not in names
    assert names["grpc.enable_retries"] == 0
    with open_sync_channel(PLAIN, addresses(three), service=SERVICE) as channel:
        assert isinstance(channel, grpc.Channel)
