"""The gateway while the log is away, its outbox full, or its disk: what is accepted, refused, and said about it."""

import asyncio
import resource
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anyloop.log import FEEDBACK, EventLog, LogError, UnknownTopic, open_log
from anyloop.log.sqlite_log import SqliteLog
from services.gateway.ledger import Ledger, LedgerError


class Broker:
    """A log behind a connection that can be cut: operations then fail, or hang for a while as a slow one's do."""

    def __init__(self) -> None:
        self.away: LogError | None = None
        self.hangs = 0.0

    def open(self, url: str) -> EventLog:
        broker = self

        class Linked(SqliteLog):
            def __getattribute__(self, name: str) -> Any:
                if name in ("append_many", "read", "end_offsets", "committed"):
                    time.sleep(broker.hangs)
                    if broker.away is not None:
                        raise broker.away
                return super().__getattribute__(name)

        return Linked(Path(url.removeprefix("sqlite://")))


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    found = Broker()
    monkeypatch.setattr("services.gateway.server.open_log", found.open)
    monkeypatch.setattr("services.outbox.open_log", found.open)
    yield found
    found.hangs = 0.0


def cut(reason: str = "no broker answers at 127.0.0.1:9092") -> LogError:
    return LogError(reason, retriable=True)


async def give(world: Any, **body: Any) -> Any:
    return await world.http.post("/v1/feedback", json={"response_id": "r", "critique": "louder", **body})


async def test_feedback_is_taken_while_the_log_is_away_and_arrives_when_it_is_back(start: Any, broker: Broker) -> None:
    world = await start()
    broker.away = cut()
    replies = [await give(world, critique=f"c{number}") for number in range(5)]
    assert [reply.status_code for reply in replies] == [200] * 5
    assert list(world.log.read(FEEDBACK)) == []
    found = await world.http.get(f"/v1/feedback/{replies[2].json()['id']}")
    assert (found.status_code, found.json()["critique"]) == (200, "c2")
    broker.away = None
    assert [record.event.unwrap().feedback.critique for record in await world.feedback()] == [f"c{n}" for n in range(5)]


async def test_a_log_that_is_away_degrades_the_gateway_and_keeps_it_ready(start: Any, broker: Broker) -> None:
    world = await start()
    assert (await world.http.get("/ready")).json() == {"status": "ready"}
    broker.away = cut()
    await give(world)
    for _ in range(200):
        ready = await world.http.get("/ready")
        assert ready.status_code == 200
        if len(ready.json().get("degraded", [])) == 2:
            break
        await asyncio.sleep(0.02)
    outbox, follower = ready.json()["degraded"]
    assert outbox.endswith("bytes of feedback wait on this machine: no broker answers at 127.0.0.1:9092")
    assert follower == "the responses topic cannot be read now: no broker answers at 127.0.0.1:9092"
    loop = (await world.http.get("/v1/loop")).json()
    assert loop["log"] == {"error": "no broker answers at 127.0.0.1:9092"}
    assert (loop["outbox"]["bytes"] > 0, loop["outbox"]["trouble"]) == (True, "no broker answers at 127.0.0.1:9092")
    broker.away = None
    await world.feedback()
    for _ in range(300):
        if (await world.http.get("/ready")).json() == {"status": "ready"}:
            return
        await asyncio.sleep(0.02)
    pytest.fail("the gateway says degraded for ever")


async def test_topics_that_do_not_exist_yet_are_waited_for(start: Any, broker: Broker) -> None:
    world = await start()
    broker.away = UnknownTopic(FEEDBACK)
    assert (await give(world)).status_code == 200
    assert (await world.http.get("/ready")).status_code == 200
    broker.away = None
    assert len(await world.feedback()) == 1


async def test_a_log_that_hangs_keeps_nobody_waiting(start: Any, broker: Broker) -> None:
    world = await start()
    broker.hangs = 5.0
    await asyncio.sleep(0.6)  # the follower hangs too
    began = time.monotonic()
    assert (await give(world)).status_code == 200
    assert (await world.say("hello")).status_code == 200
    assert (await world.http.get("/ready")).status_code == 200
    assert time.monotonic() - began < 2
    loops = await asyncio.gather(*(world.http.get("/v1/loop") for _ in range(20)))
    assert {loop.json()["log"]["error"] for loop in loops} == {"the log has not answered within 2 seconds"}
    assert time.monotonic() - began < 5
    broker.hangs = 0.0
    broker.away = cut("closing")


async def test_a_full_outbox_refuses_feedback_and_nothing_of_it_remains(start: Any, broker: Broker) -> None:
    world = await start(spool_max_bytes=18_000)
    broker.away = cut()
    accepted: list[str] = []
    while (reply := await give(world, critique="x" * 3000, idempotency_key=f"k{len(accepted)}")).status_code == 200:
        accepted.append(reply.json()["id"])
    assert len(accepted) == 5
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "5")
    assert "bound 18000" in reply.json()["error"]["message"]
    ready = await world.http.get("/ready")
    assert ready.status_code == 200
    assert any("feedback is refused: the outbox holds" in one for one in ready.json()["degraded"])
    assert (await world.say("hello")).status_code == 200
    broker.away = None
    assert [record.event.id for record in await world.feedback()] == accepted
    again = await give(world, critique="x" * 3000, idempotency_key="k5")
    assert (again.status_code, again.json()["duplicate"]) == (200, False)


@pytest.fixture
def full_disk() -> Iterator[Any]:
    """Call it with a number of bytes: no file of this process may grow beyond them until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_feedback_and_lets_answers_pass(start: Any, full_disk: Any) -> None:
    world = await start()
    first = await give(world, idempotency_key="k1")
    full_disk(100)
    refused = await give(world, critique="softer", idempotency_key="k2")
    answer = await world.say("hello")
    repeated = await give(world, idempotency_key="k1")
    ready = await world.http.get("/ready")
    full_disk(None)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
    assert "cannot be written" in refused.json()["error"]["message"]
    assert answer.status_code == 200
    assert repeated.json() == {**first.json(), "duplicate": True}
    assert ready.status_code == 200
    again = await give(world, critique="softer", idempotency_key="k2")
    assert (again.status_code, again.json()["duplicate"]) == (200, False)
    assert [record.event.id for record in await world.feedback()] == [first.json()["id"], again.json()["id"]]


async def test_feedback_that_the_ledger_cannot_note_is_taken_all_the_same(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Ledger, taken: Any) -> None:
        raise LedgerError("the gateway's ledger: database or disk is full")

    monkeypatch.setattr(Ledger, "add_feedback", full)
    first = await give(world, idempotency_key="k")
    second = await give(world, idempotency_key="k")
    assert (first.status_code, second.status_code) == (200, 200)
    assert {record.event.id for record in await world.feedback()} == {first.json()["id"]}


async def test_feedback_that_a_killed_gateway_took_without_noting_it_is_not_taken_twice(
    start: Any, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await start()
    broker.away = cut()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add_feedback", lambda self, taken: None)  # killed before it could
        first = await give(world, idempotency_key="k")
    await world.end()
    again = await start()
    second = await give(again, idempotency_key="k")
    assert second.json() == {**first.json(), "duplicate": True}
    broker.away = None
    assert [record.event.id for record in await again.feedback()] == [first.json()["id"]]


async def test_equal_keys_at_the_same_moment_are_taken_once(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = threading.Event()
    look = Ledger.feedback

    def slow(self: Ledger, feedback_id: str) -> Any:
        found = look(self, feedback_id)
        meeting.wait(0.05)  # long enough for all to have looked, did they not take turns
        return found

    monkeypatch.setattr(Ledger, "feedback", slow)
    replies = await asyncio.gather(*(give(world, idempotency_key="k") for _ in range(8)))
    assert [reply.status_code for reply in replies] == [200] * 8
    assert sorted(reply.json()["duplicate"] for reply in replies) == [False] + [True] * 7
    assert len(await world.feedback()) == 1


async def test_accepted_feedback_outlives_the_gateway(start: Any, broker: Broker) -> None:
    world = await start()
    broker.away = cut()
    taken = (await give(world)).json()["id"]
    await world.end()
    broker.away = None
    again = await start()
    assert [record.event.id for record in await again.feedback()] == [taken]
    assert (await again.http.get(f"/v1/feedback/{taken}")).status_code == 200


async def test_two_gateways_in_one_home_are_told_apart(world: Any) -> None:
    from services.gateway.server import serve

    with pytest.raises(LogError, match="in use by another process; give each its own"):
        await serve(world.settings.model_copy(update={"gateway_port": 0, "edge_grpc_port": 0}), asyncio.Event())


def test_a_ledger_of_the_last_release_keeps_its_idempotency_keys(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "ledger.db")
    old.executescript(
        """CREATE TABLE feedback (
             feedback_id TEXT PRIMARY KEY, principal TEXT NOT NULL, body TEXT NOT NULL,
             partition INTEGER NOT NULL, "offset" INTEGER NOT NULL, early INTEGER NOT NULL);
           INSERT INTO feedback VALUES ('fb-1', 'app', 'digest', 2, 40, 1);"""
    )
    old.close()
    for _ in range(2):
        ledger = Ledger(tmp_path / "ledger.db")
        taken = ledger.feedback("fb-1")
        ledger.close()
        assert taken is not None
        assert (taken.principal, taken.body, taken.early, taken.event) == ("app", "digest", True, b"")


def test_the_log_of_the_fixture_is_the_real_one(tmp_path: Path) -> None:
    broker = Broker()
    with broker.open(f"sqlite://{tmp_path / 'log.db'}") as log:
        log.ensure_topics()
        assert log.end_offsets(FEEDBACK) == open_log(f"sqlite://{tmp_path / 'log.db'}").end_offsets(FEEDBACK)
