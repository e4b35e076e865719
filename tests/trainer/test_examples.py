import pytest

from anyloop.modality import Modality
from anyloop.sequence import Codes, LayoutError, Segment, Sequencer
from protos.anyloop.v1 import feedback_pb2, types_pb2
from tests.trainer.events import feedback, response, spoken
from trainer.config import TrainerSettings
from trainer.examples import Examples, closed_answer, form_examples, staleness_weight
from trainer.join import join
from trainer.statements import verdict_of

SETTINGS = TrainerSettings()
VERSIONS = ["policy-000000"]


def encode(part: types_pb2.ContentPart) -> Segment:
    return part.text if part.WhichOneof("part") == "text" else Codes(Modality.IMAGE, (7,) * 16)


def form(sequencer: Sequencer, events: list, responses: list, versions: list[str] = VERSIONS) -> Examples:
    joined, waiting = join(events, responses)
    assert waiting == []
    return form_examples(joined, sequencer, SETTINGS, encode, versions)


def words(sequencer: Sequencer, tokens: tuple[int, ...]) -> str:
    return "".join(part for part in sequencer.parse(tokens) if isinstance(part, str))


def test_a_critique_teaches_the_critique_model_and_seeds_self_improving(sequencer: Sequencer) -> None:
    asked = spoken(sequencer, "r", "Draw a circle.", "red square")
    found = form(sequencer, [feedback("f", "r", critique=" It should be a circle. ")], [asked])
    (example,) = found.critiques
    assert words(sequencer, example.sequence.answer) == "It should be a circle."
    turns = sequencer.parse_prompt(asked.prompt_token_ids)
    assert list(example.sequence.prompt) == sequencer.critique_prompt(turns, ["red square"])
    (seed,) = found.seeds
    assert (seed.verdict, seed.critique, seed.modalities) == (False, "It should be a circle.", (Modality.TEXT,))
    assert found.pairs == []


def test_approval_teaches_the_critique_model_to_say_so_and_makes_no_pair(sequencer: Sequencer) -> None:
    found = form(sequencer, [feedback("f", "r", label=True)], [spoken(sequencer, "r", "Draw.", "a circle")])
    assert words(sequencer, found.critiques[0].sequence.answer) == SETTINGS.right_text
    assert found.pairs == []
    assert found.seeds[0].verdict is True
    assert [one.source for one in found.imitations] == ["r"]


def test_disapproval_without_words_teaches_the_critique_model_nothing(sequencer: Sequencer) -> None:
    found = form(sequencer, [feedback("f", "r", label=False)], [spoken(sequencer, "r", "Draw.", "a circle")])
    assert found.critiques == []
    assert found.seeds[0].verdict is False


def test_a_refinement_in_words_and_media_is_a_pair_and_an_answer_to_imitate(sequencer: Sequencer) -> None:
    parts = [
        types_pb2.ContentPart(text="a circle"),
        types_pb2.ContentPart(media=types_pb2.MediaRef(sha256="0" * 64, modality=types_pb2.MODALITY_IMAGE)),
    ]
    asked = spoken(sequencer, "r", "Draw.", "a square")
    found = form(sequencer, [feedback("f", "r", refinement=parts)], [asked])
    (pair,) = found.pairs
    assert pair.origin == "refinement"
    assert sequencer.parse(pair.chosen) == ["a circle", Codes(Modality.IMAGE, (7,) * 16)]
    assert pair.rejected == tuple(asked.output_token_ids)
    assert found.imitations[0].sequence.answer == pair.chosen


def test_a_refinement_that_cannot_be_encoded_is_counted_and_spares_the_rest(sequencer: Sequencer) -> None:
    def broken(part: types_pb2.ContentPart) -> Segment:
        raise LayoutError("no codec")

    event = feedback("f", "r", refinement=[types_pb2.ContentPart(text="x")], critique="It should be blue.")
    joined, _ = join([event], [spoken(sequencer, "r", "Draw.", "a square")])
    found = form_examples(joined, sequencer, SETTINGS, broken, VERSIONS)
    assert found.left_out == {"refinement_that_cannot_be_encoded": 1}
    assert len(found.critiques) == 1
    assert found.pairs == []


def test_a_preference_is_a_pair(sequencer: Sequencer) -> None:
    good, bad = spoken(sequencer, "good", "Draw.", "a circle"), spoken(sequencer, "bad", "Draw.", "a square")
    found = form(sequencer, [feedback("f", "good", preferred_over="bad")], [good, bad])
    (pair,) = found.pairs
    assert pair.origin == "preference"
    assert (words(sequencer, pair.chosen), words(sequencer, pair.rejected)) == ("a circle", "a square")


def test_a_preference_between_answers_to_different_prompts_is_counted_out(sequencer: Sequencer) -> None:
    good, bad = spoken(sequencer, "good", "Draw.", "a circle"), spoken(sequencer, "bad", "Sing.", "a square")
    found = form(sequencer, [feedback("f", "good", preferred_over="bad")], [good, bad])
    assert found.pairs == []
    assert found.left_out == {"preference_between_different_prompts": 1}


def test_a_right_answer_is_chosen_over_wrong_ones_of_the_same_prompt(sequencer: Sequencer) -> None:
    answers = [spoken(sequencer, name, "Draw.", name) for name in ("right", "wrong", "worse")]
    other = spoken(sequencer, "other", "Sing.", "la")
    events = [
        feedback("f1", "right", label=True),
        feedback("f2", "wrong", label=False),
        feedback("f3", "worse", critique="It should be red."),
        feedback("f4", "other", label=False),
    ]
    found = form(sequencer, events, [*answers, other])
    assert {words(sequencer, pair.rejected) for pair in found.pairs} == {"wrong", "worse"}
    assert {words(sequencer, pair.chosen) for pair in found.pairs} == {"right"}


def test_a_principal_who_changes_their_mind_has_one_vote(sequencer: Sequencer) -> None:
    asked = spoken(sequencer, "r", "Draw.", "a circle")
    events = [
        feedback("f1", "r", label=False, created=1),
        feedback("f2", "r", label=False, created=2),
        feedback("f3", "r", label=True, created=3),
        feedback("f4", "r", label=True, created=3, principal="bob"),
        feedback("f5", "r", label=False, created=3, principal="eve"),
    ]
    assert form(sequencer, events, [asked]).seeds[0].verdict is True


def test_stale_answers_make_no_pairs_but_still_teach_the_critique_model(sequencer: Sequencer) -> None:
    versions = [f"policy-{number:06d}" for number in range(8)]
    old = spoken(sequencer, "old", "Draw.", "a", version="policy-000000")
    recent = spoken(sequencer, "recent", "Draw.", "b", version="policy-000005")
    events = [feedback("f1", "old", critique="It should be red."), feedback("f2", "recent", critique="Make it red.")]
    found = form(sequencer, events, [old, recent], versions)
    assert len(found.critiques) == 2
    assert found.left_out == {"stale": 1}
    assert [(seed.response_id, seed.weight) for seed in found.seeds] == [("recent", pytest.approx(0.64))]


def test_stale_answers_may_be_down_weighted_instead(sequencer: Sequencer) -> None:
    versions = [f"policy-{number:06d}" for number in range(8)]
    old = spoken(sequencer, "old", "Draw.", "a", version="policy-000000")
    settings = TrainerSettings(stale="downweight", staleness_decay=0.5)
    joined, _ = join([feedback("f1", "old", label=False)], [old])
    found = form_examples(joined, sequencer, settings, encode, versions)
    assert [seed.weight for seed in found.seeds] == [0.5**7]
    assert found.left_out == {"stale_downweighted": 1}


def test_the_last_word_of_a_person_stands_and_others_keep_theirs(sequencer: Sequencer) -> None:
    asked = spoken(sequencer, "r", "Draw.", "a circle")
    events = [
        feedback("f1", "r", critique="This is correct.", created=1),
        feedback("f2", "r", critique="It should be red.", created=2),
        feedback("f3", "r", critique="It should be small.", created=3),
        feedback("f4", "r", critique="This is correct.", created=1, principal="bob"),
    ]
    found = form(sequencer, events, [asked])
    said = [words(sequencer, example.sequence.answer) for example in found.critiques]
    assert said == ["This is correct.", "It should be red.", "It should be small."]  # bob's, then ada's
    assert found.left_out == {"taken_back": 1}
    assert found.seeds[0].verdict is None  # one says right, one says wrong


def test_what_the_critique_model_was_told_is_not_told_again(sequencer: Sequencer) -> None:
    asked = spoken(sequencer, "r", "Draw.", "a circle")
    events = [feedback("f1", "r", critique="It should be red."), feedback("f2", "r", critique="It should be blue.")]
    joined, _ = join(events, [asked])
    found = form_examples(joined, sequencer, SETTINGS, encode, VERSIONS, told={"f1"})
    assert [words(sequencer, example.sequence.answer) for example in found.critiques] == ["It should be blue."]
    assert len(found.seeds) == 1


@pytest.mark.parametrize("token", [-1, 10_000_000])
def test_tokens_outside_the_vocabulary_are_counted_out(sequencer: Sequencer, token: int) -> None:
    """They would fail every batch they are in, and with it the round."""
    poisoned = spoken(sequencer, "bad", "Draw.", "a circle")
    poisoned.output_token_ids[0] = token
    good = spoken(sequencer, "good", "Draw.", "a square")
    events = [feedback("f1", "bad", label=True), feedback("f2", "good", label=True)]
    found = form(sequencer, events, [poisoned, good])
    assert found.left_out == {"not_a_sequence_of_this_model": 1}
    assert [seed.response_id for seed in found.seeds] == ["good"]


def test_tokens_that_are_no_prompt_of_this_model_are_counted_out(sequencer: Sequencer) -> None:
    found = form(sequencer, [feedback("f", "r", label=True)], [response("r", [1, 2], [3])])
    assert found.left_out == {"not_a_sequence_of_this_model": 1}


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ({"label": True, "critique": "It should be red."}, True),
        ({"critique": "This is correct."}, True),
        ({"critique": "Good, this is correct."}, True),
        ({"critique": "All of it is correct."}, True),
        ({"critique": "This is not correct."}, False),
        ({"critique": "The colour is right but it should be small."}, False),
        ({"ratings": {"overall": 0.75}}, True),
        ({"ratings": {"overall": 0.6}}, None),
        ({"ratings": {"overall": 0.49}}, False),
        ({"ratings": {"clarity": 0.1}}, False),
        ({"ratings": {"clarity": 1.0, "colour": 0.6}}, True),
        ({"ratings": {"overall": 0.1, "clarity": 1.0}}, False),
        ({"refinement": [types_pb2.ContentPart(text="better")]}, False),
        ({"tags": ["x"]}, None),
    ],
)
def test_what_a_statement_says(said: dict, verdict: bool | None) -> None:
    event = feedback("f", "r")
    event.feedback.CopyFrom(feedback_pb2.Feedback(response_id="r", **said))
    assert verdict_of(event, SETTINGS) is verdict


def test_staleness_weight_falls_per_version_and_ends() -> None:
    settings = TrainerSettings(max_versions_behind=2, staleness_decay=0.5)
    assert [staleness_weight(behind, settings) for behind in range(4)] == [1.0, 0.5, 0.25, 0.0]
    kept = settings.model_copy(update={"stale": "downweight"})
    assert [staleness_weight(behind, kept) for behind in range(4)] == [1.0, 0.5, 0.25, 0.125]


def test_an_answer_is_closed_only_if_it_ended_by_itself() -> None:
    assert closed_answer([5, 6, 9], end=9, finished=True) == (5, 6, 9)
    assert closed_answer([5, 6], end=9, finished=True) == (5, 6, 9)
    assert closed_answer([5, 6], end=9, finished=False) == (5, 6)
