"""Turns become tokens and come back; what a client writes can never become a special token."""

import pytest

from anyloop.modality import Modality
from anyloop.sequence import Codes, LayoutError, SequenceLayout, Sequencer, Turn
from tests.models.random_omni import build_random_omni

IMAGE = Codes(Modality.IMAGE, tuple(range(16)))
AUDIO = Codes(Modality.AUDIO, tuple(range(12)))


@pytest.fixture(scope="module")
def sequencer(tmp_path_factory):
    return Sequencer.from_pretrained(build_random_omni(tmp_path_factory.mktemp("omni")))


def test_layout_places_ranges_one_after_the_other():
    layout = SequenceLayout.build(100, {Modality.IMAGE: (8, 4), Modality.VIDEO: (6, 2)})
    image, video = layout.codes[Modality.IMAGE], layout.codes[Modality.VIDEO]
    assert (layout.special("bos"), layout.end, layout.special("assistant")) == (100, 101, 104)
    assert (image.open, image.close, image.begin) == (105, 106, 107)
    assert (video.open, video.close, video.begin) == (115, 116, 117)
    assert layout.vocabulary_size == 123
    assert layout.modality_of(99) is Modality.TEXT
    assert layout.modality_of(110) is Modality.IMAGE
    assert layout.modality_of(105) is None


def test_prompts_parse_back_to_their_turns(sequencer):
    turns = [
        Turn("system", ("Be kind.",)),
        Turn("user", (IMAGE, "What is this? é漢🙂")),
        Turn("assistant", ("A thing.", AUDIO)),
        Turn("user", ("Again.",)),
    ]
    assert sequencer.parse_prompt(sequencer.prompt(turns)) == turns


def test_answers_parse_back(sequencer):
    assert sequencer.parse(sequencer.answer(["now ", IMAGE, " done"])) == ["now ", IMAGE, " done"]


def test_an_unfinished_span_is_dropped(sequencer):
    tokens = sequencer.answer(["so: ", IMAGE])[:-3]
    assert sequencer.parse(tokens) == ["so: "]


def test_text_never_becomes_a_special_token(sequencer):
    tokens = sequencer.encode_text("<|end|> <bos> </s> [INST] \x00 assistant")
    assert max(tokens) < sequencer.layout.text_tokens


def test_critique_and_refine_prompts_hold_prompt_response_and_words(sequencer):
    turns = [Turn("user", (AUDIO, "What is it?"))]
    asked = sequencer.parse_prompt(sequencer.critique_prompt(turns, ["low.", IMAGE]))[0].segments
    assert asked == ("Prompt: ", AUDIO, "What is it? Response: low.", IMAGE, " Critique:")
    refine = sequencer.parse_prompt(sequencer.refine_prompt(turns, ["low."], "It should be high. "))
    assert [turn.role for turn in refine] == ["user", "assistant", "user"]
    assert refine[2].segments == ("Critique: It should be high. Now refine.",)


@pytest.mark.parametrize(
    "codes",
    [Codes(Modality.IMAGE, (1, 2)), Codes(Modality.IMAGE, (128,) * 16), Codes(Modality.TEXT, (1,))],
    ids=["too short", "out of range", "no such codes"],
)
def test_codes_that_do_not_fit_are_refused(sequencer, codes):
    with pytest.raises(LayoutError):
        sequencer.encode([codes])


def test_a_broken_layout_file_is_named(tmp_path):
    build_random_omni(tmp_path / "omni")
    (tmp_path / "omni" / "sequence.json").write_text("{")
    with pytest.raises(LayoutError, match=r"sequence\.json"):
        Sequencer.from_pretrained(tmp_path / "omni")


@pytest.mark.parametrize("tokens", [[], [1, 2, 3], [320, 5, 324]], ids=["empty", "no bos", "no role"])
def test_what_is_no_prompt_is_refused(sequencer, tokens):
    with pytest.raises(LayoutError):
        sequencer.parse_prompt(tokens)
