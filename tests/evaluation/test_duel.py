import pytest

from anyloop.evaluation.duel import duel
from anyloop.evaluation.intervals import binomial_interval


def test_wins_ties_and_losses_are_of_prompts() -> None:
    found = duel(["a"] * 5, [1.0, 0.5, 0.2, 0.0, 1.0], [0.0, 0.5, 0.1, 1.0, 0.9])
    assert (found.wins, found.ties, found.losses) == (3, 1, 1)
    assert found.win_rate.value == 0.7  # three wins and half a tie of five
    assert found.decided == binomial_interval(3, 4)
    assert found.p_value == pytest.approx(0.625)  # 2 * (1 + 4) / 16
    assert found.gain.value == pytest.approx(0.04)


def test_the_same_number_made_in_two_ways_is_a_tie() -> None:
    assert duel(["a", "a"], [0.1 + 0.2, 1 - 0.4], [0.3, 0.6]).ties == 2


def test_every_group_weighs_the_same_in_the_gain() -> None:
    found = duel(["a", "a", "a", "b"], [1, 1, 1, 0], [0, 0, 0, 1])
    assert found.gain.value == 0.0
    assert found.win_rate.value == 0.75


def test_swapping_the_versions_mirrors_the_result() -> None:
    ours, theirs = [1.0, 0.0, 1.0, 1.0, 0.5], [0.0, 0.0, 1.0, 0.0, 1.0]
    one, other = duel(["a"] * 5, ours, theirs), duel(["a"] * 5, theirs, ours)
    assert (one.wins, one.ties, one.losses) == (other.losses, other.ties, other.wins)
    assert one.p_value == other.p_value
    assert one.decided.low == pytest.approx(1 - other.decided.high)


def test_all_ties_decide_nothing() -> None:
    found = duel(["a", "b"], [1.0, 0.0], [1.0, 0.0])
    assert found.win_rate.value == 0.5
    assert found.p_value == 1.0
    assert found.decided.as_json()["value"] is None


@pytest.mark.parametrize(("groups", "ours", "theirs"), [([], [], []), (["a"], [1.0], []), (["a"], [], [1.0])])
def test_unequal_or_empty_scores_are_refused(groups: list[str], ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="as many scores"):
        duel(groups, ours, theirs)
