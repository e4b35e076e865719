"""CPU per event of what reads the log: the trainer's intake and a gateway's follower; and of the broker."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, open_log
from protos.anyloop.v1 import events_pb2
from services.gateway.follower import ResponseFollower
from services.gateway.ledger import Ledger
from trainer.intake import Intake
from trainer.join_store import JoinStore

_BATCH = 500
_FEEDBACK_EVERY = 4  # one answer in so many is spoken of


def response(number: int) -> Event:
    """2 KB, as an answer of about 250 tokens has."""
    event = events_pb2.ResponseEvent(
        response_id=f"r{number}",
        conversation_id=f"c{number}",
        prompt_token_ids=range(32),
        output_token_ids=range(250),
        output_logprobs=[-0.5] * 250,
        created_unix_ms=1_700_000_000_000 + number,
    )
    padding = 2048 - event.ByteSize()
    event.metadata["padding"] = os.urandom(max(0, padding - 16) // 2).hex()
    return Event.wrap(event, key=f"c{number}", source="services/policy", id=f"r{number}")


def feedback(number: int) -> Event:
    said = events_pb2.FeedbackEvent(feedback_id=f"f{number}", principal=f"p{number % 100}", created_unix_ms=number)
    said.feedback.response_id, said.feedback.conversation_id = f"r{number}", f"c{number}"
    said.feedback.critique = "It should be red, and one larger."
    return Event.wrap(said, key=f"c{number}", source="services/gateway", id=f"f{number}")


def consumer_costs(url: str, broker: int, count: int) -> dict[str, float]:
    """Seconds of CPU per event, and bytes; `broker` is the broker's process id, `count` the responses."""
    costs: dict[str, float] = {}
    process = psutil.Process(broker)
    with open_log(url) as log, tempfile.TemporaryDirectory() as folder:
        log.ensure_topics()
        log.append_many(RESPONSES, [response(-1)])
        events = [response(number) for number in range(count)]
        costs["response_bytes"] = sum(len(event.data) for event in events) / count
        _settle(process)
        before = _cpu(process)
        for at in range(0, count, _BATCH):
            log.append_many(RESPONSES, events[at : at + _BATCH])
        _settle(process)
        costs["broker_append"] = (_cpu(process) - before) / count
        said = [feedback(number) for number in range(0, count, _FEEDBACK_EVERY)]
        for at in range(0, len(said), _BATCH):
            log.append_many(FEEDBACK, said[at : at + _BATCH])

        before = _cpu(process)
        ledger = Ledger(Path(folder) / "ledger.db")
        costs["follower"] = _own_cpu(ResponseFollower(log, ledger).catch_up) / count
        costs["broker_read"] = (_cpu(process) - before) / count
        ledger.close()
        costs["intake"] = _intake(log, Path(folder) / "state.db") / (count + len(said))
    return costs


def _intake(log: EventLog, state: Path) -> float:
    store = JoinStore(state)
    intake = Intake(log, store)
    try:
        return _own_cpu(intake.drain)
    finally:
        intake.close()
        store.close()


def _own_cpu(work: Callable[[], object]) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF)
    work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _settle(process: psutil.Process) -> None:
    """Until the broker has nothing left to do."""
    while True:
        before = _cpu(process)
        time.sleep(0.5)
        if _cpu(process) - before < 0.05:
            return
