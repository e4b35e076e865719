"""Whether and where a gateway follows the responses of others."""

import asyncio
from typing import Any

import pytest

from anyloop.log import RESPONSES, Event, open_log
from protos.anyloop.v1 import events_pb2


async def give(world: Any, **body: Any) -> Any:
    reply = await world.http.post("/v1/feedback", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


async def known(world: Any, response_id: str) -> None:
    for _ in range(200):
        if not (await give(world, response_id=response_id, critique="louder", dry_run=True))["early"]:
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"the gateway never saw {response_id} in the log")


async def test_a_gateway_that_does_not_follow_knows_its_own_answers(start: Any) -> None:
    world = await start(follow_responses=False)
    elsewhere = events_pb2.ResponseEvent(response_id="elsewhere", conversation_id="talk-2")
    world.log.append(RESPONSES, Event.wrap(elsewhere, key="talk-2", source="test"))
    answer = (await world.say("hello", conversation_id="talk-1")).json()
    mine = await give(world, response_id=answer["id"], critique="louder")
    await asyncio.sleep(1.2)  # a follower looks twice a second
    other = await give(world, response_id="elsewhere", conversation_id="talk-2", critique="louder")
    assert (mine["early"], other["early"]) == (False, True)
    assert sorted(record.event.key for record in await world.feedback()) == ["talk-1", "talk-2"]
    ready = (await world.http.get("/ready")).json()
    assert ready == {"status": "ready"}


async def test_another_log_in_an_old_home_is_followed_from_its_own_beginning(start: Any, tmp_path: Any) -> None:
    before = await start()
    for number in range(20):
        response = events_pb2.ResponseEvent(response_id=f"r{number}", conversation_id=f"c{number}")
        before.log.append(RESPONSES, Event.wrap(response, key=f"c{number}", source="test"))
    await known(before, "r19")
    await before.end()
    moved = f"sqlite://{tmp_path / 'moved.db'}"
    with open_log(moved) as log:
        log.ensure_topics()
        for number in range(100, 140):
            response = events_pb2.ResponseEvent(response_id=f"r{number}", conversation_id=f"c{number}")
            log.append(RESPONSES, Event.wrap(response, key=f"c{number}", source="test"))
    after = await start(log_url=moved)
    for number in range(100, 140):  # those at offsets that the ledger had read in the other log too
        await known(after, f"r{number}")
