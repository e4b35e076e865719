"""What recording adds to the end of an answer: a policy service's recorder at a steady rate, whatever the log does."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from anyloop.log import RESPONSES, Event, open_log
from anyloop.log.spool import Fsync, SpooledWriter
from bench.log.contenders import EVENT_BYTES, prepared
from bench.log.process import Usage
from protos.anyloop.v1 import events_pb2
from services.replica.recorder import Recorder
from services.rpc import loop


class _Nothing:
    """An outbox that takes an event and leaves it at that."""

    def put(self, topic: str, event: Event) -> None:
        pass


def floor(rate: float, answers: int) -> dict[str, Any]:
    """What the same loop and the same threads cost where nothing is recorded: the machine's own noise."""
    recorder = Recorder(_Nothing(), "services/policy", "refuse")  # type: ignore[arg-type]
    loop.run(_answers(recorder, 1, rate))
    found = _figures(recorder, rate, answers)
    recorder.close()
    return found | {"waiting_bytes": 0}


def recording(
    url: str, folder: Path, fsync: Fsync, rate: float, answers: int, connected: Callable[[], None]
) -> dict[str, Any]:
    """Answers end at random times, `rate` a second. `connected` is called when the log has had its first event; what
    happens to the log then is the caller's."""
    prepared(url).close()
    with SpooledWriter(partial(open_log, url), folder, fsync=fsync) as outbox:
        recorder = Recorder(outbox, "services/policy", "refuse")
        loop.run(_answers(recorder, 1, rate))
        outbox.flush(30)
        connected()
        found = _figures(recorder, rate, answers)
        recorder.close()
        return found | {"waiting_bytes": outbox.pending_bytes}


def _figures(recorder: Recorder, rate: float, answers: int) -> dict[str, Any]:
    usage = Usage.now()
    took = sorted(loop.run(_answers(recorder, answers, rate)))
    used = Usage.now() - usage
    return {
        "answers": len(took),
        "p50_ms": 1e3 * took[len(took) // 2],
        "p99_ms": 1e3 * took[len(took) * 99 // 100],
        "max_ms": 1e3 * took[-1],
        "cpu_us_per_event": 1e6 * used.cpu / len(took),
        "rss_mb": used.rss_mb,
    }


async def _answers(recorder: Recorder, count: int, rate: float) -> list[float]:
    chance, took = random.Random(1), []
    clock = asyncio.get_running_loop().time
    at = clock()

    async def one(number: int) -> None:
        message = events_pb2.ResponseEvent(response_id=f"r{number}", metadata={"filler": "x" * EVENT_BYTES})
        began = time.perf_counter()
        await recorder.record(RESPONSES, message, f"conversation-{number % 1000}", f"chatcmpl-{number:032x}")
        took.append(time.perf_counter() - began)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            at += chance.expovariate(rate)
            await asyncio.sleep(max(0.0, at - clock()))
            group.create_task(one(number))
    return took
