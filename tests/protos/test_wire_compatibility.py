import copy
import json

from tests.protos.wire import SNAPSHOT, breaking_changes, current, unguarded


def test_no_field_enum_value_or_method_of_the_snapshot_was_removed_or_changed() -> None:
    assert breaking_changes(json.loads(SNAPSHOT.read_text()), current()) == []


def test_every_field_is_guarded_by_the_snapshot() -> None:
    assert unguarded(json.loads(SNAPSHOT.read_text()), current()) == [], "run `make wire` and commit wire.json"


def test_a_removed_field_is_a_breaking_change() -> None:
    changed = copy.deepcopy(current())
    del changed["messages"]["anyloop.v1.VersionSpan"]["2"]
    assert len(breaking_changes(current(), changed)) == 1
    assert "2 (begin) is gone" in breaking_changes(current(), changed)[0]


def test_a_renumbered_field_is_a_breaking_change() -> None:
    changed = copy.deepcopy(current())
    fields = changed["messages"]["anyloop.v1.VersionSpan"]
    fields["2"], fields["3"] = fields["3"], fields["2"]
    assert len(breaking_changes(current(), changed)) == 2


def test_a_new_field_breaks_nothing_but_must_be_guarded() -> None:
    changed = copy.deepcopy(current())
    field = {"name": "note", "type": "string", "label": "singular", "oneof": ""}
    changed["messages"]["anyloop.v1.VersionSpan"]["4"] = field
    assert breaking_changes(current(), changed) == []
    assert unguarded(current(), changed) == ["anyloop.v1.VersionSpan: 4 (note)"]


def test_a_method_that_starts_to_stream_is_a_breaking_change() -> None:
    changed = copy.deepcopy(current())
    changed["services"]["anyloop.v1.DecoderService"]["Encode"]["server_streaming"] = True
    assert len(breaking_changes(current(), changed)) == 1
