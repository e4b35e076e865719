"""The gateway in front of a real broker that is killed under it."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from anyloop.cli.kafka.broker import LocalBroker
from anyloop.log import FEEDBACK


async def give(world: Any, number: int) -> Any:
    body = {"response_id": "r", "critique": f"c{number}", "idempotency_key": f"k{number}"}
    return await world.http.post("/v1/feedback", json=body)


async def test_a_broker_that_is_killed_costs_no_feedback_and_no_time(
    start: Any, new_broker: Callable[[], LocalBroker]
) -> None:
    broker = await asyncio.to_thread(new_broker)
    world = await start(log_url=f"kafka://{broker.address}/loop.")
    assert (await give(world, 0)).status_code == 200
    assert len(await world.feedback()) == 1
    broker.kill()
    longest = 0.0
    said = []
    for number in range(1, 40):
        began = time.monotonic()
        assert (await give(world, number)).status_code == 200
        ready = await world.http.get("/ready")
        assert ready.status_code == 200
        said += ready.json().get("degraded", [])
        longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0.08)
    assert longest < 1.5  # of both calls, on a machine that may be busy; the broker is asked by neither
    assert (await world.say("hello")).status_code == 200
    assert any("bytes of feedback wait on this machine: " in one for one in said)
    began = time.monotonic()
    await world.end()
    assert time.monotonic() - began < 8
    await asyncio.to_thread(broker.start)
    again = await start(log_url=f"kafka://{broker.address}/loop.")
    assert (await give(again, 39)).json()["duplicate"] is True
    found = [record.event.unwrap().feedback.critique for record in await again.feedback()]
    assert found == [f"c{number}" for number in range(40)]
    assert len(list(again.log.read(FEEDBACK))) == 40
    await again.end()
    await asyncio.to_thread(broker.erase)
