import math
from collections import Counter

import numpy as np
import pytest

from anyloop.evaluation.generation import most, report, score
from anyloop.evaluation.open_prompts import KINDS, PERFORM, VOTES, OpenPrompt, emitted, open_prompts, selection
from anyloop.modality import Modality
from anyloop.world import language, tasks
from anyloop.world.scenes import Clip, Picture, Sound, changed
from anyloop.world.tasks import Answer

RNG = np.random.default_rng(0)
PICTURE = Picture("two", "large", "red", "circle", "left")
SOUND = Sound("high", "low", "high", "loud", "pure")
QUIET = changed(SOUND, "loudness", "quiet")
PERFORMANCE = OpenPrompt(PERFORM, "Show, play and tell.", (PICTURE, SOUND))
WORDS = f"{language.describe(PICTURE)}; {language.describe(SOUND)}"


def image(scene: Picture) -> np.ndarray:
    return tasks.render(scene, RNG)


def audio(scene: Sound) -> np.ndarray:
    return tasks.render(scene, RNG)


def test_the_votes_of_every_kind_add_up_and_decide_what_is_wanted() -> None:
    assert {kind: round(sum(votes.values()), 9) for kind, votes in VOTES.items()} == dict.fromkeys(KINDS, 1.0)
    wanted = {kind: "+".join(OpenPrompt(kind, "", ()).wanted) for kind in KINDS}
    assert wanted == {
        "T2T": "text",
        "TI2T": "text",
        "T2I": "image",
        "TI2TI": "text+image",
        "TA2T": "text",
        "T2A": "audio",
        "TV2T": "text",
        "T2V": "video",
        PERFORM: "text+image+audio",
    }


def test_the_same_seed_asks_the_same_open_prompts_of_every_kind() -> None:
    first, again = open_prompts(2, 3), open_prompts(2, 3)
    assert [one.text for one in first] == [one.text for one in again]
    assert Counter(one.kind for one in first) == dict.fromkeys(KINDS, 2)


def test_a_picture_and_a_sound_of_one_thing_go_together() -> None:
    for one in open_prompts(12, 0):
        if one.kind == PERFORM:
            picture, sound = one.scenes
            assert isinstance(picture, Picture)
            assert isinstance(sound, Sound)
            assert (picture.size, sound.loudness) in {("large", "loud"), ("small", "quiet")}


def test_selection_is_the_share_of_votes_for_exactly_what_was_chosen() -> None:
    whole = Answer(WORDS, image(PICTURE), audio(SOUND))
    assert selection(PERFORMANCE, whole) == 0.60
    assert selection(PERFORMANCE, Answer(" \n", image(PICTURE), audio(SOUND))) == 0.25
    assert selection(PERFORMANCE, Answer("", None, audio(SOUND))) == 0.0
    assert emitted(Answer()) == frozenset()


def test_an_answer_with_all_that_is_asked_has_full_marks() -> None:
    found = score(PERFORMANCE, Answer(WORDS, image(PICTURE), audio(SOUND)))
    assert found.following == {"text": 10.0, "visual": 10.0, "audio": 10.0}
    assert found.synergy == {("text", "visual"): 1.0, ("text", "audio"): 1.0, ("visual", "audio"): 1.0}


def test_a_missing_part_scores_nothing_and_agrees_with_nothing() -> None:
    found = score(PERFORMANCE, Answer("", None, audio(SOUND)))
    assert found.following == {"text": 0.0, "visual": 0.0, "audio": 10.0}
    assert set(found.synergy.values()) == {0.0}
    assert score(PERFORMANCE, Answer()).following == {"text": 0.0, "visual": 0.0, "audio": 0.0}


def test_following_is_the_share_of_dimensions_and_synergy_is_of_the_answer_alone() -> None:
    blue = changed(PICTURE, "colour", "blue")
    assert isinstance(blue, Picture)
    same = score(
        PERFORMANCE, Answer(f"{language.describe(blue)}; {language.describe(SOUND)}", image(blue), audio(SOUND))
    )
    assert same.following["visual"] == pytest.approx(8.0)
    assert same.following["text"] == pytest.approx(9.0)  # nine of the ten dimensions of both scenes
    assert same.synergy["text", "visual"] == 1.0, "both are wrong alike, so they agree"
    other = score(PERFORMANCE, Answer(WORDS, image(blue), audio(SOUND)))
    assert other.synergy["text", "visual"] == pytest.approx(0.8)


def test_a_picture_and_a_sound_agree_when_large_is_loud() -> None:
    quiet = score(PERFORMANCE, Answer(WORDS, image(PICTURE), audio(QUIET)))  # type: ignore[arg-type]
    assert quiet.synergy["visual", "audio"] == 0.0
    assert quiet.synergy["text", "audio"] == pytest.approx(0.8)
    noise = np.zeros((64, 64, 3), dtype=np.uint8)
    assert score(PERFORMANCE, Answer(WORDS, noise, audio(SOUND))).synergy["visual", "audio"] == 0.0


def test_only_wanted_parts_are_scored() -> None:
    prompt = OpenPrompt("T2V", "Animate this.", (Clip("large", "red", "circle", "left", "slow"),))
    found = score(prompt, Answer("a red circle", video=tasks.render(prompt.scenes[0], RNG)))
    assert found.following == {"visual": 10.0}
    assert found.synergy == {}
    assert found.selection == 0.40
    picture_instead = score(prompt, Answer(image=image(PICTURE)))
    assert picture_instead.following == {"visual": 0.0}, "a picture is no video"


def test_the_report_is_the_formula_over_the_means() -> None:
    draw = OpenPrompt("T2I", "Draw.", (PICTURE,))
    answers = [
        [score(PERFORMANCE, Answer(WORDS, image(PICTURE), audio(SOUND)))],
        [score(PERFORMANCE, Answer("", None, audio(SOUND)))],
        [score(draw, Answer("", image(PICTURE)))],
        [score(draw, Answer())],
    ]
    found = report(answers * 3)
    made = found.generation
    assert made.selection == pytest.approx((0.6 + 0 + 0.6 + 0) / 4)
    assert made.following == {"text": 5.0, "visual": 5.0, "audio": 10.0}
    assert set(made.synergy.values()) == {0.5}
    # 0.3 / 2 * 0.5 * ((5 + 5) + (5 + 10) + (5 + 10))
    assert found.amg.value == pytest.approx(3.0)
    assert found.amg.low < 3.0 < found.amg.high
    assert found.present == {"text": (3, 6), "visual": (6, 12), "audio": (6, 6)}
    assert found.choices == {PERFORM: {"audio": 3, "text+image+audio": 3}, "T2I": {"image": 3, "nothing": 3}}
    assert found.selection_by_kind == {PERFORM: pytest.approx(0.3), "T2I": pytest.approx(0.3)}
    assert math.isnan(report(answers).amg.low), "two prompts of a kind tell next to nothing of how prompts differ"


def test_no_answers_get_more_than_the_votes_allow() -> None:
    def perfect(prompt: OpenPrompt) -> Answer:
        """Without a fault, with the set of modalities that has the most votes."""
        chosen = max(prompt.votes, key=lambda one: prompt.votes[one])
        media = {one: tasks.render(prompt.expected(one)[0], RNG) for one in chosen if one is not Modality.TEXT}
        words = " and ".join(language.describe(scene) for scene in prompt.scenes) if Modality.TEXT in chosen else ""
        return Answer(words, **{str(one): medium for one, medium in media.items()})

    found = report([[score(prompt, perfect(prompt))] for prompt in open_prompts(1, seed=0)])
    assert found.amg.value == pytest.approx(most()) == pytest.approx(20.67, abs=0.005)


def test_prompts_that_leave_a_pair_out_make_no_amg() -> None:
    draw = OpenPrompt("T2I", "Draw.", (PICTURE,))
    with pytest.raises(ValueError, match="no prompt asks for text"):
        report([[score(draw, Answer("", image(PICTURE)))]])


def test_words_that_say_nothing_are_no_text() -> None:
    assert emitted(Answer("  ")) == frozenset()
    assert emitted(Answer("a")) == frozenset({Modality.TEXT})
