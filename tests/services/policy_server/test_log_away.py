"""A replica that starts while the log is away serves what its home served last, and follows the log once it is back."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from anyloop.log import RESPONSES, EventLog, LogError
from anyloop.log.sqlite_log import SqliteLog
from anyloop.registry import announce
from anyloop.registry.announce import PROMOTED
from protos.anyloop.v1 import policy_pb2, types_pb2
from protos.anyloop.v1.policy_pb2_grpc import PolicyServiceStub
from services.replica.last_serving import LastServing
from tests.services.running_replica import Running, publish_variant, running, settings_for, user


class Link:
    """Between a replica and its log; `cut`, every operation hangs for a moment and fails."""

    def __init__(self) -> None:
        self.cut = False

    def open(self, url: str) -> EventLog:
        link = self

        class Linked(SqliteLog):
            def __getattribute__(self, name: str) -> Any:
                if link.cut and name in ("append", "append_many", "read", "end_offsets"):
                    time.sleep(0.2)
                    raise LogError("no broker answers", retriable=True)
                return super().__getattribute__(name)

        return Linked(Path(url.removeprefix("sqlite://")))


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    found = Link()
    monkeypatch.setattr("services.replica.replica.open_log", found.open)
    monkeypatch.setattr("services.outbox.open_log", found.open)
    return found


async def version_of_an_answer(policy: Running) -> str:
    request = policy_pb2.GenerateRequest(
        messages=[user("Hi")],
        modalities=[types_pb2.MODALITY_TEXT],
        sampling=types_pb2.SamplingParams(max_tokens=3, seed=1),
    )
    call = PolicyServiceStub(policy.channel).Generate(request, timeout=30)
    (version,) = [event.started.policy_version async for event in call if event.HasField("started")]
    return str(version)


async def test_the_last_version_serves_until_the_log_is_back(tmp_path: Path, random_omni: Path, link: Link) -> None:
    settings = settings_for(tmp_path, random_omni)
    async with running(settings) as first:
        better = publish_variant(first.registry, "policy", random_omni, "policy-000000")
        announce(first.log, "policy", better, PROMOTED)
        await first.until_serving(better)
        newest = publish_variant(first.registry, "policy", random_omni, better)
    link.cut = True
    async with running(settings) as again:
        assert await version_of_an_answer(again) == better
        announce(again.log, "policy", newest, PROMOTED)  # while this replica cannot hear of it
        link.cut = False
        await again.until_serving(newest)
        await again.events(RESPONSES, 1)


async def test_a_new_home_waits_for_the_log(tmp_path: Path, random_omni: Path, link: Link) -> None:
    link.cut = True
    async with running(settings_for(tmp_path, random_omni), wait=False) as policy:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await policy.until_health(1)
        link.cut = False
        await policy.until_health(1)
        assert await version_of_an_answer(policy) == "policy-000000"


def test_a_version_is_noted_once_and_read_back(tmp_path: Path) -> None:
    last = LastServing(tmp_path / "serving" / "policy")
    assert last.read() is None
    last.note("policy-000001")
    before = (tmp_path / "serving" / "policy").stat().st_ino
    last.note("policy-000001")
    assert (tmp_path / "serving" / "policy").stat().st_ino == before
    assert LastServing(tmp_path / "serving" / "policy").read() == "policy-000001"
    LastServing(Path("/proc/none/policy")).note("policy-000001")  # a warning, no more
