from datetime import UTC, datetime

import pytest

from anyloop.log import Event, PoisonEvent, open_log
from anyloop.log.partition import murmur2
from protos.anyloop.v1 import events_pb2, types_pb2


@pytest.mark.parametrize(
    "message",
    [
        events_pb2.ResponseEvent(response_id="r", output_token_ids=[1, 2]),
        events_pb2.FeedbackEvent(feedback_id="f"),
        events_pb2.CritiqueEvent(critique_id="c"),
        events_pb2.CheckpointEvent(version="policy-000001"),
    ],
)
def test_every_message_of_the_log_survives_wrapping(message) -> None:
    event = Event.wrap(message, key="k", source="tests")
    assert event.type == f"anyloop.v1.{type(message).__name__}"
    assert event.unwrap() == message


def test_an_event_names_itself_unless_it_is_given_an_id() -> None:
    message = events_pb2.ResponseEvent()
    assert Event.wrap(message, key="k", source="s", id="given").id == "given"
    assert Event.wrap(message, key="k", source="s").id != Event.wrap(message, key="k", source="s").id


@pytest.mark.parametrize(
    ("event_type", "data"),
    [("anyloop.v1.ResponseEvent", b"\xff\xff"), ("anyloop.v1.Nothing", b""), ("", b"")],
)
def test_undecodable_events_are_poison_or_refused(event_type: str, data: bytes) -> None:
    with pytest.raises((PoisonEvent, ValueError)) as caught:
        Event("e", "s", event_type, datetime.now(UTC), "k", data).unwrap()
    assert not getattr(caught.value, "retriable", False)


def test_a_message_that_is_no_event_is_poison() -> None:
    reference = Event.wrap(types_pb2.MediaRef(), key="k", source="s")
    with pytest.raises(PoisonEvent, match=r"anyloop\.v1\.MediaRef"):
        reference.unwrap()


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Event("e", "s", "t", datetime(2025, 1, 1), "k", b"")


def test_attributes_are_those_of_cloudevents_and_come_back() -> None:
    event = Event("e", "s", "t", datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC), "k", b"d", {"dlqreason": "why"})
    attributes = event.attributes()
    assert attributes == {
        "id": "e",
        "source": "s",
        "type": "t",
        "time": "2025-01-02T03:04:05+00:00",
        "specversion": "1.0",
        "dlqreason": "why",
    }
    assert Event.from_attributes(attributes, key="k", data=b"d") == event


def test_missing_attributes_are_poison() -> None:
    with pytest.raises(PoisonEvent, match="source"):
        Event.from_attributes({"id": "e"}, key="k", data=b"")


@pytest.mark.parametrize(
    ("data", "expected"),
    [  # the literals of Kafka's UtilsTest.testMurmur2
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(data: bytes, expected: int) -> None:
    assert murmur2(data) == expected & 0xFFFFFFFF


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite://relative/log.db", "absolute path"),
        ("sqlite:///", "absolute path"),
        ("redis://host", "unknown scheme"),
        ("log.db", "unknown scheme"),
    ],
)
def test_a_log_url_that_cannot_be_opened_says_what_to_write_instead(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"{says}.*sqlite:///"):
        open_log(url)
