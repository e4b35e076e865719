"""Streaming gives the same segments as parsing at once, however the tokens are cut."""

import numpy as np
import pytest

from anyloop.modality import Modality
from anyloop.sequence import Codes, OutputGrammar, SegmentStream, SequenceLayout, Sequencer
from tests.models.random_omni import build_random_omni


@pytest.fixture(scope="module")
def sequencer(tmp_path_factory):
    return Sequencer.from_pretrained(build_random_omni(tmp_path_factory.mktemp("omni")))


@pytest.mark.parametrize("portion", [1, 2, 5, 100])
def test_any_portions_give_the_same_content(sequencer, portion):
    video = Codes(Modality.VIDEO, tuple(range(16)))
    tokens = sequencer.answer(["naïve 漢字 🙂 ", video, "end"])
    stream, pieces = SegmentStream(sequencer), []
    for at in range(0, len(tokens), portion):
        pieces += stream.feed(tokens[at : at + portion])
    pieces += stream.finish()
    assert "".join(p for p in pieces if isinstance(p, str)) == "naïve 漢字 🙂 end"
    assert [p for p in pieces if not isinstance(p, str)] == [video]


def test_half_a_character_is_held_back(sequencer):
    tokens = sequencer.encode_text("漢")
    assert len(tokens) > 1
    stream = SegmentStream(sequencer)
    assert stream.feed(tokens[:1]) == []
    assert stream.feed(tokens[1:]) == ["漢"]


LAYOUT = SequenceLayout.build(10, {Modality.IMAGE: (4, 2), Modality.AUDIO: (3, 1)})
IMAGE, AUDIO = LAYOUT.codes[Modality.IMAGE], LAYOUT.codes[Modality.AUDIO]


def walk(grammar, tokens):
    for token in tokens:
        assert grammar.mask()[token], token
        grammar.advance(token)


def test_a_span_has_exactly_its_length_and_is_closed():
    grammar = OutputGrammar(LAYOUT)
    walk(grammar, [3, IMAGE.open, IMAGE.begin])
    assert not grammar.mask()[IMAGE.close]
    assert grammar.tokens_to_close == 2
    walk(grammar, [IMAGE.begin + 3])
    assert np.flatnonzero(grammar.mask()).tolist() == [IMAGE.close]
    walk(grammar, [IMAGE.close, 5, LAYOUT.end])
    assert grammar.tokens_to_close == 0


def test_only_allowed_modalities_open_and_roles_never():
    mask = OutputGrammar(LAYOUT, [Modality.IMAGE], vocabulary=30).mask()
    assert np.flatnonzero(mask).tolist() == [IMAGE.open]
    mask = OutputGrammar(LAYOUT, [Modality.TEXT]).mask()
    assert not mask[IMAGE.open]
    assert not mask[LAYOUT.special("user")]


def test_an_answer_says_something():
    grammar = OutputGrammar(LAYOUT)
    assert not grammar.mask()[LAYOUT.end]
    grammar.advance(1)
    assert grammar.mask()[LAYOUT.end]
