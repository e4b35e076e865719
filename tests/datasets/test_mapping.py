"""Records to what they say: expected values stand beside the keys that the data set's card gives."""

from typing import Any

import pytest

from anyloop.datasets.align_anything.keys import KeyTable
from anyloop.datasets.align_anything.mapping import NotMapped, map_record
from anyloop.modality import Modality
from tests.datasets.samples import records

TABLE = KeyTable.load()
ALL = records()
SHAPES = {
    "text-to-text": ("T2T", "text", "text"),
    "text-image-to-text": ("TI2T", "image+text", "text"),
    "text-image-to-text-image": ("TI2TI", "image+text", "text+image"),
    "text-to-image": ("T2I", "text", "image"),
    "text-audio-to-text": ("TA2T", "audio+text", "text"),
    "text-to-audio": ("T2A", "text", "audio"),
    "text-to-video": ("T2V", "text", "video"),
    "text-video-to-text": ("TV2T", "video+text", "text"),
}


def pair(**more: Any) -> dict[str, Any]:
    return {"question": "Name a shape.", "response_1": "a square", "response_2": "a circle", **more}


def shape(parts: Any) -> str:
    return "+".join(part.modality for part in parts)


@pytest.mark.parametrize("name", SHAPES)
def test_every_subtask_is_read_as_its_name_says(name: str) -> None:
    subtask, prompt, answer = SHAPES[name]
    mapped = map_record(ALL[name], TABLE, subtask)
    assert (shape(mapped.prompt), shape(mapped.answers[0].parts)) == (prompt, answer)
    assert mapped.unknown == ()
    assert mapped.notes == ()


def test_what_people_said_of_a_pair() -> None:
    mapped = map_record(ALL["text-to-audio"], TABLE, "T2A")
    low, good = mapped.answers
    assert (mapped.preferred, low.critique, good.critique) == (1, "Too low.", "Good.")
    assert (low.model, good.model) == ("audioldm", "tango")
    assert low.ratings == {"audio_quality": pytest.approx(1 / 3)}
    assert good.ratings == {"audio_quality": 1.0}
    assert (low.better_in, good.better_in) == ((), ("audio_quality",))
    assert mapped.kept == {"refine_prompt": "Play a clear tone.", "reasoning": "it was vague"}


@pytest.mark.parametrize("name", ["text-to-text", "text-image-to-text", "text-image-to-text-image", "text-to-image"])
def test_a_record_without_a_folder_s_name_is_known_by_its_keys(name: str) -> None:
    assert map_record(ALL[name], TABLE).subtask == SHAPES[name][0]


@pytest.mark.parametrize(
    ("answer", "subtask"), [("a square", "T2T"), ("out/1.wav", "T2A"), ("out/1.png", "T2I"), ("out/1.mp4", "T2V")]
)
def test_paths_of_media_tell_subtasks_apart_that_share_their_keys(answer: str, subtask: str) -> None:
    assert map_record({"prompt": "Draw.", "response_1": answer, "response_2": answer}, TABLE).subtask == subtask


def test_a_record_that_may_be_two_things_is_not_guessed() -> None:
    either = {"prompt": "Make one.", "response_1": {"bytes": b"1"}, "response_2": {"bytes": b"2"}}
    with pytest.raises(NotMapped, match="it may be T2I or T2A or T2V: put the file in a folder of the subtask's name"):
        map_record(either, TABLE)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"response_2": None}, "no text of the answer under response_2"),
        ({"question": ""}, "no text of the prompt under question or prompt"),
        ({"response_1": 7}, "response_1 of the answer is of type int, not text"),
        ({"response_1": []}, "no text of the answer under response_1"),
    ],
)
def test_a_record_without_content_says_what_is_missing(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NotMapped, match=sentence):
        map_record(pair(**change), TABLE, "T2T")


def test_a_record_of_no_subtask_names_its_keys() -> None:
    with pytest.raises(NotMapped, match="no subtask has the keys of this record"):
        map_record({"url": "x", "caption": "y"}, TABLE)


@pytest.mark.parametrize(
    ("value", "preferred"), [(1, 0), (2, 1), ("2", 1), (1.0, 0), (0, None), (3, None), ("a", None)]
)
def test_a_preference_is_1_or_2_in_any_type(value: Any, preferred: int | None) -> None:
    mapped = map_record(pair(overall_response=value), TABLE, "T2T")
    assert mapped.preferred == preferred
    assert mapped.notes == (() if preferred is not None else ("a preference that is neither 1 nor 2 prefers none",))


@pytest.mark.parametrize("value", [4, -1, "good", True, float("nan")])
def test_a_rating_out_of_its_scale_is_left_out_and_noted(value: Any) -> None:
    mapped = map_record(pair(clarity_rate_1=value, clarity_rate_2=3), TABLE, "T2T")
    assert mapped.answers[0].ratings == {}
    assert mapped.answers[1].ratings == {"clarity": 1.0}
    assert mapped.notes == ("a rating that is not from 0 to 3 is left out",)


def test_any_key_of_the_form_of_a_rating_is_a_dimension() -> None:
    mapped = map_record(pair(humour_rate_1=3, humour_response=1), TABLE, "T2T")
    assert mapped.answers[0].ratings == {"humour": 1.0}
    assert mapped.answers[0].better_in == ("humour",)
    assert mapped.unknown == ()


def test_what_was_said_by_dimension_stands_for_a_critique_where_there_is_none() -> None:
    said = {"p_rationale_1": "It does what was asked.", "clarity_rationale_1": "Clear.", "text_critique_2": "Wrong."}
    first, second = map_record(pair(**said, c_rationale_2="Unclear."), TABLE, "T2T").answers
    assert first.critique == "prompt following: It does what was asked.\nclarity: Clear."
    assert second.critique == "Wrong."
    noted = map_record(pair(**said, c_rationale_2="Unclear."), TABLE, "T2T").notes
    assert noted == ("rationales by dimension beside a critique are left out",)


def test_a_refinement_is_read_and_half_of_one_is_noted() -> None:
    assert map_record(pair(refinement_2="a triangle"), TABLE, "T2T").answers[1].refinement[0].value == "a triangle"
    mapped = map_record(pair(refinement_2=7), TABLE, "T2T")
    assert mapped.answers[1].refinement == ()
    assert mapped.notes == ("refinement_2 of the refinement is of type int, not text",)


def test_marks_of_media_are_taken_out_of_a_prompt_that_has_media() -> None:
    assert map_record(ALL["text-video-to-text"], TABLE, "TV2T").prompt[1].value == "What moves?"
    assert (
        map_record(pair(question="What does <image> mean?"), TABLE, "T2T").prompt[0].value == "What does <image> mean?"
    )


def test_several_media_of_a_part_are_as_many_parts() -> None:
    record = ALL["text-image-to-text"]
    mapped = map_record(record | {"image": [record["image"], record["image"]]}, TABLE, "TI2T")
    assert shape(mapped.prompt) == "image+image+text"


def test_keys_that_no_entry_names_are_told() -> None:
    assert map_record(pair(mood="merry", empty=None, subtask="T2T"), TABLE, "T2T").unknown == ("mood",)


def test_a_dotted_key_reaches_into_an_object(tmp_path: Any) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[T2T]\nanswer = [{ text = ["answers.{n}.text"] }]\n')
    record = {"question": "q", "answers": {"1": {"text": "one"}, "2": {"text": "two"}}}
    mapped = map_record(record, KeyTable.load(path), "T2T")
    assert [answer.parts[0].value for answer in mapped.answers] == ["one", "two"]
    assert mapped.unknown == ()
    assert mapped.prompt[0].modality is Modality.TEXT
