"""Events of the first release are read by this one, and what a later one adds survives the way through it."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from anyloop.log import FEEDBACK, Event, dlq
from anyloop.log.sqlite_log import SqliteLog
from protos.anyloop.v1 import events_pb2
from trainer.intake import fault_of

GOLDEN = Path(__file__).with_name("golden")
EVENTS = {
    "response": "anyloop.v1.ResponseEvent",
    "feedback": "anyloop.v1.FeedbackEvent",
    "critique": "anyloop.v1.CritiqueEvent",
    "checkpoint": "anyloop.v1.CheckpointEvent",
}

ADDED_SINCE = {"attempt"}  # names of fields that events have got after the first release


def event(name: str, data: bytes | None = None) -> Event:
    data = (GOLDEN / f"{name}.bin").read_bytes() if data is None else data
    return Event(f"{name}-1", "services/old", EVENTS[name], datetime.now(UTC), "conv-1", data)


def unknown(message: Message) -> list[int]:
    """Numbers of the fields that this release has no name for, at any depth."""
    found = [one.field_number for one in UnknownFieldSet(message)]
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for one in value if field.is_repeated else [value]:
            found += unknown(one)
    return found


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_of_the_first_release_means_what_it_meant(name: str) -> None:
    message = event(name).unwrap()
    assert type(message).DESCRIPTOR.full_name == EVENTS[name]
    assert unknown(message) == []
    assert MessageToDict(message, preserving_proto_field_name=True) == json.loads(
        (GOLDEN / f"{name}.json").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("name", EVENTS)
def test_every_field_of_the_first_release_was_set_in_the_golden_event(name: str) -> None:
    """So that none of them can change its meaning unseen; a field added since is not there."""
    message = event(name).unwrap()
    first = {field.name for field in message.DESCRIPTOR.fields if field.name not in ADDED_SINCE}
    assert first == {field.name for field, _ in message.ListFields()}


@pytest.mark.parametrize("name", ["response", "feedback"])
def test_the_trainer_finds_no_fault_with_them(name: str) -> None:
    message = event(name).unwrap()
    assert isinstance(message, events_pb2.ResponseEvent | events_pb2.FeedbackEvent)
    assert fault_of(message) == ""


def test_a_field_of_a_later_release_is_passed_over_and_kept(tmp_path: Path) -> None:
    """A dead letter is put back as it came: what this release does not know must not be lost on the way."""
    later = (GOLDEN / "feedback.bin").read_bytes() + b"\xc2\x3e\x05later"  # field 1000, length-delimited
    message = event("feedback", later).unwrap()
    assert isinstance(message, events_pb2.FeedbackEvent)
    assert (message.feedback_id, message.feedback.critique) == ("fb-1", "The circle should be red.")
    assert unknown(message) == [1000]
    assert b"later" in message.SerializeToString()
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        log.append(FEEDBACK, event("feedback", later))
        with log.consumer("g", [FEEDBACK]) as consumer:
            (record,) = consumer.poll(timeout=10)
            consumer.dead_letter(record, "tried")
        (letter,) = log.read(dlq(FEEDBACK))
        assert letter.event.data == later
