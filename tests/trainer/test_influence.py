"""A cap on the share of the weight that rests on one principal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.batches import TokenSequence
from trainer.examples import Example
from trainer.influence import cap_examples, cap_influence


def shares(weights: list[float], voices: list[tuple[str, ...]]) -> dict[str, float]:
    whole = sum(weights)
    found: dict[str, float] = {}
    for weight, names in zip(weights, voices, strict=True):
        for name in names:
            found[name] = found.get(name, 0.0) + weight / len(names) / whole
    return found


def test_a_loud_voice_is_brought_down_to_its_share_and_others_keep_their_weight() -> None:
    voices = [("eve",)] * 90 + [("ada",)] * 6 + [("bob",)] * 4
    found = cap_influence([1.0] * 100, voices, 0.4)
    # level = 0.4 * (level + 10), so 6.667: ada's 6 and bob's 4 stay
    assert sum(found.weights[:90]) == pytest.approx(6.6667, abs=1e-3)
    assert found.weights[90:] == [1.0] * 10
    assert (found.voices, found.capped) == (3, 1)
    assert (found.largest_before, found.largest_after) == (pytest.approx(0.9), pytest.approx(0.4))


def test_the_cap_is_on_weight_not_on_number() -> None:
    voices = [("eve",), ("ada",), ("ada",), ("ada",), ("bob",)]
    found = cap_influence([30.0, 1.0, 1.0, 1.0, 3.0], voices, 0.5)
    assert found.weights == [pytest.approx(6.0), 1.0, 1.0, 1.0, 3.0]


def test_what_models_said_counts_in_the_total_and_is_never_lowered() -> None:
    people = [("eve",)] * 20 + [("ada",), ("bob",), ("cy",)]
    found = cap_influence([1.0] * 40, [*people, *[()] * 17], 0.25)
    assert found.weights[20:] == [1.0] * 20
    assert sum(found.weights[:20]) == pytest.approx(0.25 * sum(found.weights))


def test_a_single_voice_is_left_as_it_is_and_two_become_equal() -> None:
    assert cap_influence([2.0, 1.0], [("ada",), ("ada",)], 0.1).weights == [2.0, 1.0]
    found = cap_influence([1.0] * 10, [("eve",)] * 9 + [("ada",)], 0.3)
    assert shares(found.weights, [("eve",)] * 9 + [("ada",)]) == pytest.approx({"eve": 0.5, "ada": 0.5})


def test_nothing_is_capped_where_nobody_speaks() -> None:
    assert cap_influence([1.0, 2.0], [(), ()], 0.1).weights == [1.0, 2.0]
    assert cap_influence([], [], 0.5).metrics("pairs") == {
        "pairs_voices": 0,
        "pairs_voices_capped": 0,
        "pairs_largest_share_before": 0.0,
        "pairs_largest_share": 0.0,
    }


@given(
    st.lists(
        st.tuples(st.floats(0.01, 5), st.lists(st.sampled_from("abcdef"), max_size=2, unique=True)),
        min_size=1,
        max_size=40,
    ),
    st.floats(0.05, 1.0),
)
def test_no_weight_grows_and_no_voice_has_more_than_its_share(items: list, share: float) -> None:
    weights, voices = [weight for weight, _ in items], [tuple(names) for _, names in items]
    found = cap_influence(weights, voices, share)
    assert all(new <= old + 1e-9 for new, old in zip(found.weights, weights, strict=True))
    people = {name for names in voices for name in names}
    if people:
        assert found.largest_after <= max(share, 1 / len(people)) + 1e-6
    alone = all(len(names) < 2 for names in voices)  # then a share can be read off the weights
    if people and alone:
        assert max(shares(found.weights, voices).values()) == pytest.approx(found.largest_after)


def test_examples_carry_their_new_weights() -> None:
    examples = [Example(TokenSequence((1,), (2,)), "r", 1.0, (name,)) for name in ["eve"] * 8 + ["ada", "bob"]]
    capped, found = cap_examples(examples, 0.5)
    assert [one.weight for one in capped] == found.weights
    assert capped[0].weight == pytest.approx(0.25)
