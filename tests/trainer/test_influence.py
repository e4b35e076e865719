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
    voices = [("eve",)] * 20 + [("ada",)] * 6 + [("bob",)] * 4
    found = cap_influence([1.0] * 30, voices, 0.4)
    # level = 0.4 * (level + 10), so 6.667: ada's 6 and bob's 4 stay
    assert sum(found.weights[:20]) == pytest.approx(6.6667, abs=1e-3)
    assert found.weights[20:] == [1.0] * 10
    assert (found.voices, found.capped) == (3, 1)
    assert (found.largest_before, found.largest_after) == (pytest.approx(2 / 3), pytest.approx(0.4))


def test_the_cap_gives_way_before_one_word_outweighs_a_loud_voice() -> None:
    found = cap_influence([1.0] * 201, [("eve",)] * 200 + [("ada",)], 0.5)
    assert found.weights == [0.25] * 200 + [1.0]
    assert found.largest_after == pytest.approx(50 / 51)
    assert found.metrics("pairs")["pairs_largest_share"] == round(50 / 51, 4)


@pytest.mark.parametrize("trust", [0.0, 9.4e-14, 1e-5])
def test_who_is_hardly_believed_brings_nobody_down(trust: float) -> None:
    """Nor does the total vanish, whatever numbers come together."""
    voices = [("eve",)] * 200 + [("ada",)] * 10
    assert cap_influence([1.0] * 200 + [trust] * 10, voices, 0.5).weights[:200] == [1.0] * 200
    found = cap_influence([1.0] * 200 + [1.0] * 200 + [trust] * 10, [("bob",)] * 200 + voices, 0.5)
    assert found.weights[:400] == [1.0] * 400
    assert cap_influence([0.0, 0.0], [("ada",), ("bob",)], 0.5).weights == [0.0, 0.0]


def test_voices_that_leave_nothing_to_share_do_not_divide_by_it() -> None:
    weights = [1e-13, 9.4e-14, 0.7, 0.1, 0.1, 1.0, 0.8, 0.1, 0.7, 0.1, 0.7]
    for share in (0.5, 0.25, 1 / 3, 0.2, 0.1):
        for count in range(2, 12):
            voices = [(f"p{number % count}",) for number in range(11)]
            for some in (weights, sorted(weights), [0.7] * count + [0.0] * (11 - count), [0.1] * 10 + [1e-17]):
                found = cap_influence(some, voices, share)
                assert min(found.weights) >= 0
                assert sum(found.weights) >= 0.25 * sum(some) - 1e-9


def test_the_cap_is_on_weight_not_on_number() -> None:
    voices = [("eve",), ("ada",), ("ada",), ("ada",), ("bob",)]
    found = cap_influence([20.0, 1.0, 1.0, 1.0, 3.0], voices, 0.5)
    assert found.weights == [pytest.approx(6.0), 1.0, 1.0, 1.0, 3.0]


def test_what_models_said_counts_in_the_total_and_is_never_lowered() -> None:
    people = [("eve",)] * 20 + [("ada",), ("bob",), ("cy",)]
    found = cap_influence([1.0] * 40, [*people, *[()] * 17], 0.25)
    assert found.weights[20:] == [1.0] * 20
    assert sum(found.weights[:20]) == pytest.approx(0.25 * sum(found.weights))


def test_a_single_voice_is_left_as_it_is_and_two_become_equal() -> None:
    assert cap_influence([2.0, 1.0], [("ada",), ("ada",)], 0.1).weights == [2.0, 1.0]
    found = cap_influence([1.0] * 4, [("eve",)] * 3 + [("ada",)], 0.3)
    assert shares(found.weights, [("eve",)] * 3 + [("ada",)]) == pytest.approx({"eve": 0.5, "ada": 0.5})


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
def test_no_weight_grows_and_no_voice_has_more_than_its_share_unless_the_cap_gives_way(
    items: list, share: float
) -> None:
    weights, voices = [weight for weight, _ in items], [tuple(names) for _, names in items]
    found = cap_influence(weights, voices, share)
    assert all(old / 4 - 1e-9 <= new <= old + 1e-9 for new, old in zip(found.weights, weights, strict=True))
    people = {name for names in voices for name in names}
    mean = sum(weights) / len(weights)
    spoken = [
        sum(one / len(names) for one, names in zip(weights, voices, strict=True) if who in names) for who in people
    ]
    gave_way = found.weights and min(new / old for new, old in zip(found.weights, weights, strict=True)) < 0.2500001
    if people and not gave_way and min(spoken) > 0.1 * mean:
        assert found.largest_after <= max(share, 1 / len(people)) + 1e-6
    alone = all(len(names) < 2 for names in voices)  # then a share can be read off the weights
    if people and alone:
        assert max(shares(found.weights, voices).values()) == pytest.approx(found.largest_after)


def test_examples_carry_their_new_weights() -> None:
    examples = [Example(TokenSequence((1,), (2,)), "r", 1.0, (name,)) for name in ["eve"] * 8 + ["ada", "bob"]]
    capped, found = cap_examples(examples, 0.5)
    assert [one.weight for one in capped] == found.weights
    assert capped[0].weight == pytest.approx(0.25)
