import pytest

from anyloop.approval import approves


@pytest.mark.parametrize(
    ("critique", "right"),
    [
        ("This is correct.", True),
        ("It shows two red circles: two yes, red yes. This is correct.", True),
        ("Good, this is correct.", True),
        ("All of it is correct", True),
        ("  perfect!  ", True),
        ("This is correct. But the tone is low.", False),
        ("This is not correct.", False),
        ("It should be blue.", False),
        ("", False),
        ("Is this correct? Right?", False),
        ("Is it? This is correct.", True),
        ('Perfect?"', False),
    ],
)
def test_the_last_sentence_gives_the_verdict(critique: str, right: bool) -> None:
    assert approves(critique) is right


def test_a_deployment_has_words_of_its_own() -> None:
    assert approves("Stimmt alles.", right_text="Stimmt alles.")
    assert approves("ok", right_pattern="^ok$")
    assert not approves("Stimmt alles.")
