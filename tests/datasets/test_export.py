"""Joined feedback as rows: which examples it makes, and what they look like."""

from collections.abc import Sequence
from typing import Any

import pytest

from anyloop.datasets.export.conversations import (
    critique_row,
    critique_set,
    label_row,
    label_set,
    preference_row,
    preference_set,
)
from anyloop.datasets.export.examples import Critique, Label, Preference, form
from anyloop.log.join import join
from protos.anyloop.v1 import events_pb2, types_pb2
from tests.trainer.events import feedback, response

Part = str | types_pb2.Modality.ValueType
IMAGE, AUDIO, VIDEO = types_pb2.MODALITY_IMAGE, types_pb2.MODALITY_AUDIO, types_pb2.MODALITY_VIDEO


def parts(*given: Part) -> list[types_pb2.ContentPart]:
    return [
        types_pb2.ContentPart(text=one)
        if isinstance(one, str)
        else types_pb2.ContentPart(media=types_pb2.MediaRef(sha256=f"{one}" * 64, modality=one))
        for one in given
    ]


def user(*given: Part) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_USER, parts=parts(*given))


def assistant(*given: Part) -> types_pb2.Message:
    return types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=parts(*given))


def answered(name: str, *given: Part, ask: Sequence[Part] = ("Draw.",)) -> events_pb2.ResponseEvent:
    event = response(name)
    event.messages.append(user(*ask))
    event.response.CopyFrom(assistant(*given))
    return event


def examples(said: list[events_pb2.FeedbackEvent], *answers: events_pb2.ResponseEvent) -> Any:
    joined, _ = join(said, answers)
    return form(joined)


def place(media: types_pb2.MediaRef) -> str:
    return f"file-{media.modality}"


def test_a_preference_is_a_pair_with_its_words() -> None:
    said = feedback("f", "good", preferred_over="bad", comparison="clearer")
    (pair,) = examples([said], answered("good", "a circle"), answered("bad", "a square")).preferences
    assert preference_row(pair, place) == {
        "prompt": [{"role": "user", "content": "Draw."}],
        "chosen": [{"role": "assistant", "content": "a circle"}],
        "rejected": [{"role": "assistant", "content": "a square"}],
        "comparison": "clearer",
        "origin": "preference",
        "feedback_id": "f",
    }


def test_a_refinement_is_better_than_what_it_refines() -> None:
    said = feedback("f", "r", refinement=parts("a circle"))
    (pair,) = examples([said], answered("r", "a square")).preferences
    assert (pair.origin, pair.chosen.parts[0].text, pair.rejected.parts[0].text) == (
        "refinement",
        "a circle",
        "a square",
    )


def test_one_statement_may_be_an_example_of_every_kind() -> None:
    said = feedback("f", "r", critique=" too red ", label=False, refinement=parts("a blue one"))
    found = examples([said], answered("r", "a red one"))
    assert [len(kind) for kind in (found.preferences, found.critiques, found.labels)] == [1, 1, 1]
    assert (found.critiques[0].critique, found.labels[0].good) == ("too red", False)


@pytest.mark.parametrize(
    ("said", "answers", "reason"),
    [
        (feedback("f", "r", ratings={"overall": 1.0}), [answered("r", "a")], "ratings or tags only"),
        (feedback("f", "r", label=True), [response("r")], "the prompt was logged as tokens only"),
        (feedback("f", "r", label=True), [answered("r")], "the answer is empty or was cancelled"),
        (
            feedback("f", "r", preferred_over="w"),
            [answered("r", "a"), answered("w", "b", ask=["Sing."])],
            "a preference between answers to different prompts",
        ),
        (
            feedback("f", "r", preferred_over="w"),
            [answered("r", "a"), answered("w", "a")],
            "the better answer is the worse one",
        ),
        (feedback("f", "r", preferred_over="w"), [answered("r", "a"), answered("w")], "the worse answer is empty"),
    ],
    ids=["ratings", "tokens only", "empty", "prompts", "equal", "empty worse"],
)
def test_what_makes_no_example_is_counted_by_reason(
    said: events_pb2.FeedbackEvent, answers: list[events_pb2.ResponseEvent], reason: str
) -> None:
    found = examples([said], *answers)
    assert not found.preferences + found.critiques + found.labels
    assert found.left_out == {reason: 1}


@pytest.mark.parametrize(
    ("prompt", "chosen", "name"),
    [
        (["q"], ["a"], "preference"),
        ([IMAGE, "q"], ["a"], "preference_images"),
        ([IMAGE, "q"], ["a", IMAGE], "preference_media"),
        ([AUDIO, "q"], ["a"], "preference_media"),
        (["q"], [VIDEO], "preference_media"),
    ],
)
def test_pairs_are_sorted_by_what_can_train_on_them(prompt: list[Part], chosen: list[Part], name: str) -> None:
    assert preference_set(Preference((user(*prompt),), assistant(*chosen), assistant("b"), "preference", "f")) == name


def test_media_are_parts_in_the_text_and_files_in_columns_in_the_same_order() -> None:
    pair = Preference(
        (user("Mix ", "these", IMAGE, AUDIO),), assistant(IMAGE, "so"), assistant(VIDEO), "preference", "f"
    )
    row = preference_row(pair, place)
    assert row["prompt"][0]["content"] == [
        {"type": "text", "text": "Mix these"},
        {"type": "image"},
        {"type": "audio"},
    ]
    assert row["chosen"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "so"}]
    assert (row["images"], row["audios"], row["videos"]) == (
        [f"file-{IMAGE}"] * 2,
        [f"file-{AUDIO}"],
        [f"file-{VIDEO}"],
    )


def test_a_set_for_vision_language_trainers_has_images_and_no_other_media() -> None:
    row = preference_row(Preference((user(IMAGE, "q"),), assistant("a"), assistant("b"), "preference", "f"), place)
    assert row["images"] == [f"file-{IMAGE}"]
    assert not {"audios", "videos"} & row.keys()


def test_a_critique_is_asked_for_as_the_critique_model_is_asked() -> None:
    example = Critique((user("Draw a dot."),), assistant("a line"), "It is a line.", "f")
    assert critique_set(example) == "critique"
    assert critique_row(example, place) == {
        "prompt": [{"role": "user", "content": "Prompt: Draw a dot. Response: a line Critique:"}],
        "completion": [{"role": "assistant", "content": "It is a line."}],
        "feedback_id": "f",
    }
    drawn = Critique((user("Draw a dot."),), assistant(IMAGE), "It is a line.", "f")
    assert critique_set(drawn) == "critique_media"
    assert critique_row(drawn, place)["prompt"][0]["content"] == [
        {"type": "text", "text": "Prompt: Draw a dot. Response: "},
        {"type": "image"},
        {"type": "text", "text": " Critique:"},
    ]


def test_a_label_is_a_completion_that_is_good_or_not() -> None:
    example = Label((user("Draw a dot."),), assistant("."), True, "f")
    assert label_set(example) == "label"
    assert label_row(example, place) == {
        "prompt": [{"role": "user", "content": "Draw a dot."}],
        "completion": [{"role": "assistant", "content": "."}],
        "label": True,
        "feedback_id": "f",
    }
