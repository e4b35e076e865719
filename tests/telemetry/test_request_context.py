import asyncio

import pytest

from anyloop.log import Event
from anyloop.telemetry import context
from protos.anyloop.v1 import events_pb2

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


@pytest.fixture(autouse=True)
def _nobody() -> None:
    context.enter([])


def test_what_a_caller_sends_is_bound_and_goes_on_to_the_next() -> None:
    sent = (("x-request-id", "r.1"), ("x-response-id", "resp:2"), ("traceparent", PARENT))
    context.enter([*sent, ("user-agent", "x"), ("blob-bin", b"\x00")])
    assert context.bound() == {"request_id": "r.1", "response_id": "resp:2", "trace_id": TRACE}
    assert context.outgoing() == sent


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-request-id", ""),
        ("x-request-id", "a" * 129),
        ("x-request-id", 'a"\nlevel: forged'),
        ("x-request-id", "ä"),
        ("traceparent", "00-xyz"),
        ("traceparent", f"00-{'0' * 32}-00f067aa0ba902b7-01"),
        ("traceparent", f"00-{TRACE}-{'0' * 16}-01"),
        ("traceparent", f"ff-{TRACE}-00f067aa0ba902b7-01"),
        ("traceparent", f"{PARENT}-more"),
    ],
    ids=["empty", "long", "forged", "not-ascii", "short", "no-trace", "no-span", "version-ff", "tail"],
)
def test_malformed_ids_are_passed_over(name: str, value: str) -> None:
    context.enter([(name, value)])
    assert context.bound() == {}
    assert context.outgoing() == ()


def test_entering_forgets_the_request_before() -> None:
    context.enter([("x-request-id", "first"), ("traceparent", PARENT)])
    context.bind(response_id="its answer")
    context.enter([("x-request-id", "second")])
    assert context.bound() == {"request_id": "second"}


def test_a_request_without_an_id_gets_one_and_keeps_it() -> None:
    made = context.request_id()
    assert made.startswith("req-")
    assert context.request_id() == made
    assert context.bound() == {"request_id": made}


async def test_requests_side_by_side_have_their_own_ids_and_what_they_start_has_theirs() -> None:
    async def work(name: str) -> str:
        context.enter([("x-request-id", name)])
        await asyncio.sleep(0.001)
        return await asyncio.create_task(deeper())

    async def deeper() -> str:
        return await asyncio.to_thread(context.request_id)

    assert await asyncio.gather(*(work(f"r{n}") for n in range(20))) == [f"r{n}" for n in range(20)]


def test_an_event_said_within_a_trace_carries_it_and_another_does_not() -> None:
    message = events_pb2.FeedbackEvent(feedback_id="f")
    assert Event.wrap(message, key="k", source="test").extensions == {}
    context.set_traceparent(PARENT)
    event = Event.wrap(message, key="k", source="test")
    assert event.attributes()["traceparent"] == PARENT
    assert Event.from_attributes(event.attributes(), key="k", data=event.data) == event
