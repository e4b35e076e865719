import math

import numpy as np
import pytest

from bench.paper.intervals import Values, estimate, estimates, fieller, ratio


def seeds_of(means: list[float], prompts: int = 1000) -> list[Values]:
    """Seeds whose values have these means and no spread: what is left is the spread between seeds."""
    return [{"T2T": np.full(prompts, mean)} for mean in means]


def test_three_seeds_have_students_t_interval() -> None:
    found = estimate(seeds_of([0.10, 0.16, 0.13]))
    assert found.mean == pytest.approx(0.13)
    assert found.low == pytest.approx(0.13 - 4.302653 * 0.03 / math.sqrt(3))  # t of 0.975 at 2 degrees of freedom
    assert found.high == pytest.approx(0.13 + 4.302653 * 0.03 / math.sqrt(3))
    assert found.over == "seeds"
    assert found.seeds == pytest.approx((0.10, 0.16, 0.13))


def test_seeds_that_agree_by_chance_do_not_make_a_sure_gain() -> None:
    one = np.array([1.0] * 6 + [0.0] * 3 + [-1.0])  # mean 0.5, variance 0.5
    found = estimate([{"T2T": one}, {"T2T": one}, {"T2T": one}])
    half = 1.959964 * math.sqrt(0.5 / 10 / 3)  # the standard error of thirty prompts
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half))


def test_a_group_is_the_mean_of_its_subtasks_means() -> None:
    seeds = [{"A": np.array([1.0, 0.0]), "B": np.ones(4), "C": np.zeros(4)}] * 3
    found = estimates(seeds, {"A": ["A"], "AB": ["A", "B"], "all": ["A", "B", "C"]})
    assert {name: one.mean for name, one in found.items()} == {"A": 0.5, "AB": 0.75, "all": 0.5}


def test_one_seed_has_an_interval_over_prompts_only_and_says_so() -> None:
    outcomes = np.array([1.0] * 80 + [0.0] * 20)
    found = estimate([{"T2T": outcomes}])
    assert found.over == "prompts"
    assert found.mean == 0.8
    assert found.low == pytest.approx(0.8 - 1.96 * 0.04, abs=0.02)  # sqrt(0.8 * 0.2 / 100) = 0.04
    assert found.high == pytest.approx(0.8 + 1.96 * 0.04, abs=0.02)


def test_many_seeds_are_bootstrapped_over_seeds_and_their_prompts() -> None:
    rng = np.random.default_rng(3)
    means = 0.5 + 0.1 * rng.standard_normal(16)
    prompts = [rng.random(50) < mean for mean in means]
    found = estimate([{"T2T": values.astype(float)} for values in prompts])
    assert found.over == "seeds and prompts"
    spread = np.std([values.mean() for values in prompts], ddof=1) / 4
    assert found.low is not None
    assert found.high is not None
    width = (found.high - found.low) / 2
    # Prompts drawn anew inside each seed add their variance to that between the seeds' means, which has it already.
    assert 1.96 * spread * 0.9 < width < 1.96 * math.hypot(spread, 0.5 / math.sqrt(800)) * 1.1


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        rates = 0.5 + 0.05 * rng.standard_normal(3)
        found = estimate([{"T2T": (rng.random(100) < rate).astype(float)} for rate in rates])
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.5 <= found.high
    assert 0.94 <= hits / 400 <= 0.99  # a little more than 95 %: never narrower than the prompts alone make it


def test_fiellers_interval_of_literal_figures() -> None:
    # g = (2 * 0.5 / 4)**2 = 1/16; ratio 2; bounds (2 ± (2 * 0.5 / 4) * sqrt(1 * (1 - g) + 4)) / (1 - g)
    low, high = fieller(8.0, 4.0, np.array([[0.25, 0.0], [0.0, 0.25]]), 2.0)
    root = 0.25 * math.sqrt(1 - 1 / 16 + 4)
    assert (low, high) == pytest.approx(((2 - root) / (15 / 16), (2 + root) / (15 / 16)))


def test_a_ratio_over_something_near_zero_has_no_bounds() -> None:
    found = ratio(seeds_of([0.2, 0.22, 0.18]), seeds_of([0.05, -0.03, 0.04]))
    assert found is not None
    assert found.mean == pytest.approx(10.0)
    assert (found.low, found.high) == (None, None)
    assert found.seeds == ()  # one of the seeds has no ratio


def test_no_ratio_over_a_loss() -> None:
    assert ratio(seeds_of([0.2, 0.2]), seeds_of([-0.01, 0.01])) is None


def test_a_ratio_of_seeds_that_move_together_is_sharper_than_its_parts() -> None:
    found = ratio(seeds_of([0.30, 0.36, 0.33]), seeds_of([0.10, 0.12, 0.11]))
    assert found is not None
    assert found.mean == pytest.approx(3.0)
    assert found.seeds == pytest.approx((3.0, 3.0, 3.0))
    assert (found.low, found.high) == pytest.approx((3.0, 3.0), abs=1e-6)


def test_the_ratio_of_one_seed_is_bootstrapped_over_its_prompts() -> None:
    above, below = np.array([1.0] * 60 + [0.0] * 40), np.array([1.0] * 30 + [0.0] * 70)
    found = ratio([{"T2T": above}], [{"T2T": below}])
    assert found is not None
    assert found.mean == pytest.approx(2.0)
    assert found.over == "prompts"
    assert found.low is not None
    assert found.high is not None
    assert 1.3 < found.low < 1.7
    assert 2.5 < found.high < 3.2


def test_a_subtasks_interval_pools_what_training_adds_over_the_subtasks() -> None:
    # Variance between seeds 0.0004 in A and 0.0016 in B, none from the prompts: 0.001 pooled, 2 x (3 - 1) degrees.
    seeds = [{"A": np.full(9, 0.1 + step), "B": np.full(9, 0.5 + 2 * step)} for step in (-0.02, 0.0, 0.02)]
    found = estimates(seeds, {"A": ["A"], "B": ["B"]})
    half = 2.776445 * math.sqrt(0.001 / 3)  # t of 0.975 at 4 degrees of freedom
    assert (found["A"].low, found["A"].high) == pytest.approx((0.1 - half, 0.1 + half))
    assert (found["B"].low, found["B"].high) == pytest.approx((0.5 - half, 0.5 + half))


def test_intervals_of_subtasks_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    names = {name: [name] for name in "ABCDEFGH"}
    hits = 0
    for _ in range(100):
        seeds = [
            {name: (rng.random(60) < 0.6 + 0.05 * rng.standard_normal()) * 1.0 for name in names} for _ in range(3)
        ]
        for one in estimates(seeds, names).values():
            assert one.low is not None
            assert one.high is not None
            hits += one.low <= 0.6 <= one.high
    assert 0.93 <= hits / 800 <= 0.98
