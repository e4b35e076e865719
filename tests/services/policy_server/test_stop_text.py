"""Nothing of a stop string is ever shown, and nothing else is lost."""

import pytest

from services.policy.stop_text import StopText


@pytest.mark.parametrize(
    ("pieces", "stops", "shown"),
    [
        (["ab", "cd"], [], "abcd"),
        (["ab", "STOPcd"], ["STOP"], "ab"),
        (["abS", "T", "OP", "cd"], ["STOP"], "ab"),
        (["abST", "xy"], ["STOP"], "abSTxy"),
        (["one two three"], ["three", "two"], "one "),
        (["aab"], ["ab"], "a"),
        (["abS"], ["STOP"], "abS"),
    ],
)
def test_text_is_shown_up_to_the_first_stop_string(pieces: list[str], stops: list[str], shown: str) -> None:
    text = StopText(stops)
    assert "".join([*(text.feed(piece) for piece in pieces), text.flush()]) == shown


def test_what_cannot_begin_a_stop_string_is_not_held_back() -> None:
    text = StopText(["STOP"])
    assert text.feed("hello S") == "hello "
    assert text.feed("ea") == "Sea"
