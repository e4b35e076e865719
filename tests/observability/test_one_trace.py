"""One trace from a client through gateway, policy, engine and decoder to the log, and the round that links to it."""

import asyncio
import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from anyloop.config import Settings
from anyloop.log import FEEDBACK, RESPONSES, Event
from anyloop.sequence import Sequencer
from anyloop.telemetry import exporting, logs, tracing
from tests.observability.collector import Collector, collecting
from tests.observability.loop_stack import Stack, serving
from tests.trainer.loop import open_sqlite_loop

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
HEADERS = {"traceparent": PARENT, "x-request-id": "order-66"}
IMAGE = {"messages": [{"role": "user", "content": "Draw a red circle"}], "modalities": ["image"], "seed": 2**64 - 1}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setattr(tracing, "_content", False)
    monkeypatch.setattr(exporting, "_providers", [])
    with collecting() as found:
        yield found
        for provider in exporting._providers:
            provider.shutdown()


def trace_to(collector: Collector, **changes: bool) -> None:
    tracing.configure("test", Settings(_env_file=None, otlp_endpoint=collector.address, **changes))


async def ask(stack: Stack) -> str:
    answer = await stack.http.post("/v1/chat/completions", json=IMAGE, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-request-id"] == "order-66"
    return str(answer.json()["id"])


def learn(folder: Path, model: Path, answer: Event, words: Event) -> None:
    """A round of a real learner, in a home of its own, on these two events."""
    folder.mkdir()
    with open_sqlite_loop(folder, model, Sequencer.from_pretrained(model)) as loop:
        loop.log.append(RESPONSES, answer)
        loop.log.append(FEEDBACK, words)
        assert loop.learner(gate_timeout_s=0.0).once()


async def test_an_answer_is_one_trace_down_to_the_log_and_the_round_links_to_it(
    collector: Collector, tmp_path: Path
) -> None:
    trace_to(collector)
    async with serving(tmp_path) as stack:
        response_id = await ask(stack)
        said = {"response_id": response_id, "critique": "It should be blue."}
        assert (await stack.http.post("/v1/feedback", json=said)).status_code == 200
        await stack.policy.events(RESPONSES, 1)
        await stack.policy.events(FEEDBACK, 1)
        (answer,), (words,) = (list(stack.policy.log.read(topic)) for topic in (RESPONSES, FEEDBACK))
        model = stack.policy.settings.model_dir
    assert answer.event.extensions["traceparent"].split("-")[1] == TRACE
    other = words.event.extensions["traceparent"].split("-")[1]
    assert other != TRACE  # said in a request of its own

    await asyncio.to_thread(learn, tmp_path / "loop", model, answer.event, words.event)
    tracing.flush()

    below = {span.id: span for span in collector.spans if span.trace == TRACE}
    way = [
        "POST /v1/chat/completions",
        "chat policy",
        "anyloop.v1.PolicyService/Generate",
        "answer",
        "decode image",
        "anyloop.v1.DecoderService/Decode",
    ]
    for parent, child in pairwise(way):
        parents = {span.id for span in collector.named(parent)} & below.keys()
        assert {span.parent for span in collector.named(child)} <= parents, (parent, child)
        assert collector.named(child), child
    assert collector.one("POST /v1/chat/completions").parent == "00f067aa0ba902b7"
    assert collector.one("engine").parent == collector.one("answer").id
    published = collector.one(f"publish {RESPONSES}")
    assert published.parent == collector.one("anyloop.v1.PolicyService/Generate").id
    assert collector.one(f"process {RESPONSES}").parent == published.id  # the trainer, days later for all we know
    assert set(collector.one("round").links) == {TRACE, other}
    assert not any(span.failed for span in below.values())

    chat = collector.one("chat policy")
    assert chat.attributes["gen_ai.response.id"] == response_id
    assert chat.attributes["gen_ai.operation.name"] == "chat"
    assert chat.attributes["gen_ai.output.type"] == "image"
    assert chat.attributes["gen_ai.response.model"] == "policy-000000"
    assert chat.attributes["gen_ai.usage.output_tokens"] > 0
    assert chat.events == ("gen_ai.first_token",)
    assert "red circle" not in json.dumps([span.attributes for span in collector.spans])


async def test_what_people_wrote_is_in_spans_where_it_was_asked_for(collector: Collector, tmp_path: Path) -> None:
    trace_to(collector, trace_content=True)
    async with serving(tmp_path) as stack:
        await ask(stack)
    tracing.flush()
    chat = collector.one("chat policy").attributes
    assert "Draw a red circle" in chat["gen_ai.input.messages"]
    assert "sha256" in chat["gen_ai.output.messages"]


async def test_a_refused_request_is_a_failed_span_with_its_status(collector: Collector, tmp_path: Path) -> None:
    trace_to(collector)
    async with serving(tmp_path) as stack:
        await stack.policy.replica._rpc.set_serving(False)
        stack.policy.replica._inflight.draining = True
        answer = await stack.http.post("/v1/chat/completions", json=IMAGE, headers=HEADERS)
        assert answer.status_code == 503
    tracing.flush()
    first = collector.one("POST /v1/chat/completions")
    assert first.failed
    assert first.attributes["http.response.status_code"] == 503
    assert collector.one("chat policy").attributes["error.type"] == "UNAVAILABLE"


async def test_untraced_services_pass_a_clients_trace_on_and_name_its_ids_in_their_logs(
    collector: Collector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, access = logging.getLogger(), logs.ACCESS
    before = root.handlers[:], root.level, access.level
    logs.configure("all", "INFO", access=True)
    try:
        async with serving(tmp_path) as stack:
            response_id = await ask(stack)
            await stack.policy.events(RESPONSES, 1)
            (answer,) = stack.policy.log.read(RESPONSES)
    finally:
        root.handlers[:], level, access_level = before
        root.setLevel(level)
        access.setLevel(access_level)
    assert answer.event.extensions["traceparent"] == PARENT
    assert collector.spans == []
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    told = {line["message"].split(" ")[0]: line for line in lines if line["logger"] == "anyloop.access"}
    for service in ("POST", "anyloop.v1.PolicyService/Generate", "anyloop.v1.DecoderService/Decode"):
        line = told[service]
        ids = {name: line.get(name) for name in ("request_id", "response_id", "trace_id")}
        assert ids == {"request_id": "order-66", "response_id": response_id, "trace_id": TRACE}, service
