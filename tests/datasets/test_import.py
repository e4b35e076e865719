"""Records to events: what stands in the log, how often, and what the report says of the rest."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from anyloop.log import FEEDBACK, RESPONSES, Event, EventLog, open_log
from anyloop.media.store import MediaStore
from anyloop.sequence import Codes, Sequencer
from protos.anyloop.v1 import events_pb2, types_pb2
from tests.datasets.conftest import RunImport
from tests.datasets.samples import mp4, png, records, said, write_all, write_jsonl


def pair(number: int, **more: Any) -> dict[str, Any]:
    words = {"response_1": f"a square {number}", "response_2": f"a circle {number}"}
    return {"question": f"Name a shape, {number}.", **words, **said(), **more}


def text_set(folder: Path, count: int, **more: Any) -> Path:
    write_jsonl(folder / "text-to-text" / "train.jsonl", [pair(number, **more) for number in range(count)])
    return folder


def responses(log: EventLog) -> dict[str, events_pb2.ResponseEvent]:
    messages = [record.event.unwrap() for record in log.read(RESPONSES)]
    return {one.response_id: one for one in messages if isinstance(one, events_pb2.ResponseEvent)}


def feedback(log: EventLog) -> dict[str, events_pb2.FeedbackEvent]:
    messages = [record.event.unwrap() for record in log.read(FEEDBACK)]
    return {one.feedback_id: one for one in messages if isinstance(one, events_pb2.FeedbackEvent)}


def times_written(log: EventLog) -> Counter[str]:
    return Counter(record.event.id for topic in (RESPONSES, FEEDBACK) for record in log.read(topic))


def of_subtask(log: EventLog, subtask: str) -> list[events_pb2.ResponseEvent]:
    found = [one for one in responses(log).values() if one.metadata["subtask"] == subtask]
    return sorted(found, key=lambda one: one.response_id)


def test_all_eight_subtasks_become_pairs_of_responses_with_feedback(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    report = run_import(write_all(tmp_path / "data"))
    assert {name: (one.imported, one.without_tokens) for name, one in report.subtasks.items()} == dict.fromkeys(
        ("T2T", "TI2T", "TI2TI", "T2I", "TA2T", "T2A", "TV2T", "T2V"), (1, 0)
    )
    assert len(responses(log)) == len(feedback(log)) == 16
    assert report.events == {
        "response": 16,
        "preference": 8,
        "critique": 12,
        "rating": 16,
        "comparison": 5,
        "tags": 6,
    }
    for one in feedback(log).values():
        assert responses(log)[one.feedback.response_id].conversation_id == one.feedback.conversation_id


def test_a_response_holds_the_media_by_reference_and_the_tokens_of_this_model(
    tmp_path: Path, run_import: RunImport, log: EventLog, store: MediaStore, model: Path
) -> None:
    run_import(write_all(tmp_path / "data"))
    sequencer = Sequencer.from_pretrained(model)
    for subtask, data, modality in (("T2I", png(60), "image"), ("TV2T", mp4(), "video")):
        first = of_subtask(log, subtask)[0]
        (medium,) = [
            part.media
            for part in (first.response if subtask == "T2I" else first.messages[0]).parts
            if part.WhichOneof("part") == "media"
        ]
        assert store.get(medium.sha256) == data
        parsed = sequencer.parse(first.output_token_ids)
        asked = sequencer.parse_prompt(list(first.prompt_token_ids))[0].segments
        (codes,) = [one for one in (parsed if subtask == "T2I" else asked) if isinstance(one, Codes)]
        assert codes.modality == modality
        assert first.output_token_ids[-1] == sequencer.layout.end
    assert of_subtask(log, "T2I")[0].modalities == [types_pb2.MODALITY_IMAGE]
    assert of_subtask(log, "TI2TI")[0].modalities == [types_pb2.MODALITY_TEXT, types_pb2.MODALITY_IMAGE]


def test_an_imported_answer_is_nobody_s_sample(tmp_path: Path, run_import: RunImport, log: EventLog) -> None:
    run_import(text_set(tmp_path / "data", 1))
    for one in responses(log).values():
        assert (list(one.output_logprobs), list(one.version_spans)) == ([], [])
        assert one.finish_reason == types_pb2.FINISH_REASON_STOP
        assert one.metadata["record"] == "text-to-text/train.jsonl#0"


def test_one_statement_about_each_answer(tmp_path: Path, run_import: RunImport, log: EventLog) -> None:
    run_import(text_set(tmp_path / "data", 1, refinement_2="a triangle"))
    better, worse = sorted((one.feedback for one in feedback(log).values()), key=lambda one: one.response_id)
    assert (better.preferred_over, better.comparison) == (worse.response_id, "The first is short and right.")
    assert (better.critique, worse.critique) == ("Right.", "The colour is wrong.")
    assert dict(worse.ratings) == {"prompt_following": pytest.approx(1 / 3)}
    assert list(better.tags) == ["prompt_following:better"]
    assert [part.text for part in worse.refinement] == ["a triangle"]
    assert not worse.preferred_over


def test_who_spoke_is_the_annotator_where_the_data_name_one(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    run_import(text_set(tmp_path / "data", 1, annotator="a7"), principal="import:x")
    assert {one.principal for one in feedback(log).values()} == {"import:x:a7"}


def test_a_second_run_adds_nothing(tmp_path: Path, run_import: RunImport, log: EventLog) -> None:
    folder = write_all(tmp_path / "data")
    run_import(folder)
    before = times_written(log)
    report = run_import(folder)
    assert times_written(log) == before
    assert set(before.values()) == {1}
    assert (report.total("imported"), report.total("already")) == (0, 8)


def test_the_same_data_under_another_name_are_other_events(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    folder = text_set(tmp_path / "data", 2)
    run_import(folder)
    run_import(folder, name="again")
    assert len(responses(log)) == 8


def test_equal_records_are_one(tmp_path: Path, run_import: RunImport, log: EventLog) -> None:
    write_jsonl(tmp_path / "data" / "t2t.jsonl", [pair(1), pair(2), pair(1)])
    tally = run_import(tmp_path / "data").of("T2T")
    assert (tally.read, tally.imported, tally.repeated) == (3, 2, 1)
    assert len(responses(log)) == 4


def test_a_broker_gets_every_event_once_too(tmp_path: Path, run_import: RunImport, kafka_url: str) -> None:
    folder = text_set(tmp_path / "data", 70)
    with open_log(kafka_url) as broker:
        broker.ensure_topics()
        with pytest.raises(Killed):
            run_import(folder, into=DyingLog(broker, 2, "half-way"))
        report = run_import(folder, into=broker)
        assert set(times_written(broker).values()) == {1}
        assert len(responses(broker)) == len(feedback(broker)) == 140
    assert report.total("imported") + report.total("already") == 70


class Killed(BaseException):
    """What a kill leaves behind: nothing after it runs."""


class DyingLog:
    """Dies before or after its n-th append, the event or half of the batch written."""

    def __init__(self, log: EventLog, append: int, how: str) -> None:
        self._log, self._left, self._how = log, append, how

    def read(self, topic: str) -> Any:
        return self._log.read(topic)

    def append_many(self, topic: str, events: list[Event]) -> None:
        self._left -= 1
        if self._left == 0:
            whole = {"before": [], "half-way": events[: len(events) // 2 + 1], "after": events}
            self._log.append_many(topic, whole[self._how])
            raise Killed
        self._log.append_many(topic, events)


@pytest.mark.parametrize("progress", ["kept", "lost"])
@pytest.mark.parametrize("how", ["before", "half-way", "after"])
@pytest.mark.parametrize("append", [1, 2, 3, 4])
def test_killed_anywhere_and_run_again_every_event_is_there_once(
    tmp_path: Path, run_import: RunImport, log: EventLog, append: int, how: str, progress: str
) -> None:
    folder = text_set(tmp_path / "data", 100)  # two batches
    with pytest.raises(Killed):
        run_import(folder, into=DyingLog(log, append, how))
    if progress == "lost":
        (tmp_path / "progress" / "progress.json").unlink(missing_ok=True)
    report = run_import(folder)
    written = times_written(log)
    assert (len(written), set(written.values())) == (400, {1})
    assert report.total("imported") + report.total("already") == report.total("read") == 100


def test_a_run_that_was_killed_goes_on_and_reports_the_whole(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    folder = text_set(tmp_path / "data", 100, mood="merry")
    with pytest.raises(Killed):
        run_import(folder, into=DyingLog(log, 3, "before"))
    noted = json.loads((tmp_path / "progress" / "progress.json").read_text())
    assert (noted["positions"], noted["done"]) == ({"text-to-text/train.jsonl": 64}, False)
    report = run_import(folder)
    assert (report.of("T2T").imported, report.of("T2T").unknown_keys["mood"].count) == (100, 100)


@pytest.mark.parametrize("change", ["file", "log"])
def test_an_import_begins_anew_where_the_file_or_the_log_is_another(
    tmp_path: Path, run_import: RunImport, log: EventLog, change: str
) -> None:
    folder = text_set(tmp_path / "data", 100)
    with pytest.raises(Killed):
        run_import(folder, into=DyingLog(log, 3, "before"))
    if change == "file":
        rows = [pair(number) for number in (200, *range(100))]
        write_jsonl(folder / "text-to-text" / "train.jsonl", rows)
        report = run_import(folder)
        assert (report.of("T2T").already, report.of("T2T").imported) == (64, 37)
        assert set(times_written(log).values()) == {1}
        return
    with open_log(f"sqlite:///{tmp_path}/fresh.db") as fresh:
        fresh.ensure_topics()
        assert run_import(folder, into=fresh).of("T2T").imported == 100
        assert len(responses(fresh)) == 200


def test_a_log_that_holds_as_much_but_other_things_is_another_log(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    with open_log(f"sqlite:///{tmp_path}/other.db") as other:
        other.ensure_topics()
        run_import(text_set(tmp_path / "others", 80), into=other, name="another")
        folder = text_set(tmp_path / "data", 100)
        with pytest.raises(Killed):
            run_import(folder, into=DyingLog(log, 3, "before"))
        assert run_import(folder, into=other).of("T2T").imported == 100
        assert len(responses(other)) == 360


def test_an_import_of_something_else_does_not_begin_in_the_middle(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    folder = text_set(tmp_path / "data", 100)
    with pytest.raises(Killed):
        run_import(folder, into=DyingLog(log, 3, "before"))
    report = run_import(folder, source="other keys")
    assert (report.of("T2T").already, report.of("T2T").imported) == (64, 36)


def test_a_dry_run_says_the_same_and_leaves_no_trace(
    tmp_path: Path, run_import: RunImport, log: EventLog, store: MediaStore
) -> None:
    folder = write_all(tmp_path / "data")
    dry = run_import(folder, dry_run=True)
    assert not times_written(log)
    assert not list((tmp_path / "media").iterdir())
    assert not list((tmp_path / "progress").iterdir())
    assert dry.to_dict() == run_import(folder).to_dict()


def test_only_the_subtasks_asked_for_and_only_the_first_records(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    folder = write_all(text_set(tmp_path / "more", 5).parent / "data")
    write_jsonl(folder / "text-to-text" / "second.jsonl", [pair(number) for number in range(5)])
    report = run_import(folder, subtasks=frozenset({"T2T", "T2I"}), limit=3)
    assert {name: one.read for name, one in report.subtasks.items()} == {"T2T": 3, "T2I": 1}
    again = run_import(folder, subtasks=frozenset({"T2T", "T2I"}), limit=3)
    assert again.total("imported") == 0


def test_the_limit_is_of_each_subtask_and_not_of_each_file(tmp_path: Path, run_import: RunImport) -> None:
    drawn = [records()["text-to-image"] | {"prompt": f"Draw {number}."} for number in range(4)]
    write_jsonl(tmp_path / "data" / "a.jsonl", [*(pair(number) for number in range(4)), *drawn])
    write_jsonl(tmp_path / "data" / "b.jsonl", [pair(number) for number in range(4, 8)])
    report = run_import(tmp_path / "data", limit=3)
    assert {name: one.imported for name, one in report.subtasks.items()} == {"T2T": 3, "T2I": 3}


BAD = {
    "half a surrogate pair": '{"question": "q", "response_1": "\\ud83d", "response_2": "b"}',
    "half a surrogate pair in a key": '{"\\ud83d": "q", "question": "q", "response_1": "a", "response_2": "b"}',
    "deep": "[" * 200_000,
    "deep value": '{"question": "q", "response_1": "a", "response_2": "b", "x": ' + "[" * 5000 + "]" * 5000 + "}",
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_record_that_cannot_be_used_is_refused_and_the_others_go_in(
    tmp_path: Path, run_import: RunImport, log: EventLog, bad: str
) -> None:
    folder = text_set(tmp_path / "data", 1)
    with (folder / "text-to-text" / "train.jsonl").open("a") as file:
        file.write(bad + "\n" + json.dumps(pair(2)) + "\n")
    tally = run_import(folder).of("T2T")
    assert (tally.read, tally.imported, tally.refused) == (3, 2, 1)
    assert len(responses(log)) == 4
    ((kind, one),) = tally.problems.items()
    assert kind in ("the record cannot be read", "the record holds values that cannot be used")
    assert one.example


def test_a_number_beyond_all_bounds_prefers_none(tmp_path: Path, run_import: RunImport) -> None:
    tally = run_import(text_set(tmp_path / "data", 1, overall_response=10**400, x=[10**400])).of("T2T")
    assert (tally.imported, list(tally.problems)) == (1, ["a preference that is neither 1 nor 2 prefers none"])


def test_what_is_not_understood_is_counted_with_its_reason_and_an_example(
    tmp_path: Path, run_import: RunImport
) -> None:
    folder = tmp_path / "data"
    write_jsonl(folder / "text-to-text" / "a.jsonl", [pair(1, mood="merry"), pair(2, response_2=None), {}])
    (folder / "text-to-text" / "b.jsonl").write_text("not JSON\n")
    write_jsonl(folder / "x.jsonl", [{"url": "x"}])
    write_jsonl(folder / "tv2t.jsonl", [records()["text-video-to-text"]])
    report = run_import(folder)
    tally = report.of("T2T")
    assert (tally.read, tally.imported, tally.refused) == (4, 1, 3)
    reasons = {kind: (one.count, one.where) for kind, one in tally.problems.items()}
    assert reasons == {
        "no text of the answer under response_2": (1, "text-to-text/a.jsonl#1"),
        "no text of the prompt under question or prompt": (1, "text-to-text/a.jsonl#2"),
        "the record cannot be read": (1, "text-to-text/b.jsonl#0"),
    }
    assert (tally.unknown_keys["mood"].count, tally.unknown_keys["mood"].example) == (1, '"merry"')
    (unknown,) = report.of("unknown").problems.items()  # one reason, however many kinds of keys there are
    assert (unknown[0], unknown[1].example) == ("no subtask has the keys of this record", "url")
    (missing,) = report.of("TV2T").problems.items()
    assert missing[0] == "the video cannot be had"
    assert "unpack the archive" in missing[1].example
    lines = (tmp_path / "progress" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["record"] for line in lines] == [
        "text-to-text/a.jsonl#1",
        "text-to-text/a.jsonl#2",
        "text-to-text/b.jsonl#0",
        "tv2t.jsonl#0",
        "x.jsonl#0",
    ]


def test_what_was_refused_comes_in_once_the_cause_is_gone(tmp_path: Path, run_import: RunImport) -> None:
    folder = tmp_path / "data"
    write_jsonl(folder / "tv2t.jsonl", [records()["text-video-to-text"]])
    assert run_import(folder).of("TV2T").refused == 1
    (folder / "videos").mkdir()
    (folder / "videos" / "one.mp4").write_bytes(mp4())
    assert run_import(folder).of("TV2T").imported == 1
    write_jsonl(folder / "t2t.jsonl", [{"ask": "Name a shape.", "response_1": "a", "response_2": "b"}])
    assert run_import(folder).of("T2T").refused == 1
    keys = tmp_path / "keys.toml"
    keys.write_text('[T2T]\nprompt = [{ text = ["ask"] }]\n')
    assert run_import(folder, keys=keys).of("T2T").imported == 1


@pytest.mark.parametrize("only_trainable", [False, True])
def test_what_this_model_cannot_hold_has_no_tokens_and_says_why(
    tmp_path: Path, run_import: RunImport, log: EventLog, only_trainable: bool
) -> None:
    write_jsonl(tmp_path / "data" / "t2t.jsonl", [pair(1), pair(2, response_2="very long " * 40)])
    tally = run_import(tmp_path / "data", capacity=128, only_trainable=only_trainable).of("T2T")
    kind = "prompt and answer are longer than this model holds"
    assert f"no token ids: {kind}" in tally.problems
    if only_trainable:
        assert (tally.imported, tally.refused, len(responses(log))) == (1, 1, 2)
        return
    assert (tally.imported, tally.without_tokens, len(responses(log))) == (2, 1, 4)
    (long,) = [one for one in responses(log).values() if not one.output_token_ids]
    assert (long.metadata["no_tokens"], list(long.prompt_token_ids)) == (kind, [])
    assert long.response.parts[0].text.startswith("very long")


def test_a_medium_that_no_codec_can_read_is_stored_and_said(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    cut = png()[:60]
    row = records()["text-to-image"] | {"image_2": {"bytes": cut, "path": None}}
    write_jsonl(tmp_path / "data" / "t2i.jsonl", [row])
    tally = run_import(tmp_path / "data").of("T2I")
    assert tally.without_tokens == 1
    assert "broken or cut short" in tally.problems["no token ids: the codec cannot take the image"].example
    assert sorted(bool(one.output_token_ids) for one in responses(log).values()) == [False, True]


def test_a_record_too_large_for_the_log_is_refused_and_the_others_go_in(
    tmp_path: Path, run_import: RunImport, log: EventLog
) -> None:
    write_jsonl(tmp_path / "data" / "t2t.jsonl", [pair(1, response_1="x" * 1_100_000), pair(2)])
    tally = run_import(tmp_path / "data").of("T2T")
    assert (tally.imported, tally.refused) == (1, 1)
    assert "too large for an event of the log" in tally.problems


def test_a_broken_file_is_told_and_the_others_are_read(tmp_path: Path, run_import: RunImport) -> None:
    folder = text_set(tmp_path / "data", 2)
    (folder / "text-to-image").mkdir()
    (folder / "text-to-image" / "a.parquet").write_bytes(b"PAR1")
    report = run_import(folder)
    assert report.total("imported") == 2
    assert "fetch it again" in report.files["text-to-image/a.parquet"]


def test_the_records_before_a_file_s_damage_are_in(tmp_path: Path, run_import: RunImport, log: EventLog) -> None:
    place = tmp_path / "data" / "text-to-text" / "a.parquet"
    place.parent.mkdir(parents=True)
    rows = [{"question": f"q{at}", "response_1": "a", "response_2": "b", "overall_response": 1} for at in range(90)]
    parquet.write_table(pa.Table.from_pylist(rows), place, row_group_size=30, use_dictionary=False)
    column = parquet.ParquetFile(place).metadata.row_group(2).column(0)
    data = bytearray(place.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = (
        b"\xff" * column.total_compressed_size
    )
    place.write_bytes(data)
    write_jsonl(place.with_name("z.jsonl"), [pair(1)])
    report = run_import(tmp_path / "data")
    assert "fetch it again" in report.files["text-to-text/a.parquet"]
    assert report.total("imported") == 61
    assert len(responses(log)) == 122
    assert report.events["response"] == 122
