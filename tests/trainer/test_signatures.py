"""Kinds of work, told from tokens, and weights balanced over them."""

import pytest

from anyloop.modality import Modality
from anyloop.sequence import Codes, Sequencer, Turn
from trainer.examples import Pair
from trainer.signatures import balanced, signature

IMAGE = Codes(Modality.IMAGE, (1,) * 16)


@pytest.mark.parametrize(
    ("asked", "answer", "name"),
    [
        (("Say it.",), ["red"], "text>text"),
        ((IMAGE, "What is it?"), ["red"], "text+image>text"),
        (("Draw it.",), [IMAGE], "text>image"),
        ((IMAGE, "Edit it."), ["done", IMAGE], "text+image>text+image"),
    ],
    ids=["say", "see", "draw", "edit"],
)
def test_a_signature_names_the_media_of_prompt_and_answer(
    sequencer: Sequencer, asked: tuple, answer: list, name: str
) -> None:
    prompt = sequencer.prompt([Turn("user", asked)])
    assert signature(sequencer.layout, prompt, sequencer.answer(answer)) == name


def test_an_empty_answer_has_a_signature(sequencer: Sequencer) -> None:
    assert (
        signature(sequencer.layout, sequencer.prompt([Turn("user", ("a",))]), (sequencer.layout.end,)) == "text>nothing"
    )


def pair(weight: float = 1.0) -> Pair:
    return Pair((1,), (2,), (3,), "preference", "r", weight)


def test_balanced_weights_even_out_the_kinds_and_keep_the_sum() -> None:
    pairs, names = [pair()] * 12 + [pair()] * 4, ["a"] * 12 + ["b"] * 4
    even = balanced(pairs, names, 1.0)
    assert sum(even[:12]) == pytest.approx(8.0)
    assert sum(even[12:]) == pytest.approx(8.0)
    half = balanced(pairs, names, 0.5)  # (8/12)^.5 and (8/4)^.5, then the sum restored
    assert half[12] / half[0] == pytest.approx(3**0.5)
    assert sum(half) == pytest.approx(16.0)
    assert balanced(pairs, names, 0.0) == [1.0] * 16


def test_a_handful_of_pairs_is_not_raised_beyond_the_bound() -> None:
    pairs, names = [pair()] * 99 + [pair()], ["a"] * 99 + ["b"]
    found = balanced(pairs, names, 1.0, most=4.0)
    assert found[-1] / found[0] == pytest.approx(4.0 / (50 / 99))


def test_one_kind_alone_and_weights_of_zero_are_left_alone() -> None:
    assert balanced([pair(2.0), pair(1.0)], ["a", "a"], 1.0) == [2.0, 1.0]
    assert balanced([pair(0.0), pair(1.0)], ["a", "b"], 1.0) == [0.0, 1.0]
