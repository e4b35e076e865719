import math

import numpy as np
import pytest
from scipy import stats

from anyloop.evaluation.intervals import (
    Estimate,
    binomial_interval,
    bootstrap,
    clustered_share,
    sign_test,
    wilson,
)


def test_wilsons_interval_is_that_of_the_textbooks() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 15/148, 0/20, 1/29.
    found = [wilson(*one) for one in ((81, 263), (15, 148), (0, 20), (1, 29))]
    assert [(round(one.low, 4), round(one.high, 4)) for one in found] == [
        (0.2553, 0.3662),
        (0.0624, 0.1605),
        (0.0, 0.1611),
        (0.0061, 0.1718),
    ]


@pytest.mark.parametrize(("wins", "trials"), [(0, 7), (1, 1), (3, 10), (700, 1000), (4999, 5000)])
def test_the_exact_interval_and_the_sign_test_agree_with_scipy(wins: int, trials: int) -> None:
    exact = stats.binomtest(wins, trials)
    interval = exact.proportion_ci(method="exact")
    found = binomial_interval(wins, trials)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert sign_test(wins, trials - wins) == pytest.approx(exact.pvalue, abs=1e-12)


def test_nothing_asked_is_no_number_and_null_in_json() -> None:
    for one in (wilson(0, 0), clustered_share([]), binomial_interval(0, 0), bootstrap([]), bootstrap([[1.0], []])):
        assert one.as_json() == {"value": None, "low": None, "high": None}
    assert sign_test(0, 0) == 1.0


def test_one_answer_per_prompt_is_plain_wilson() -> None:
    assert clustered_share([(1, 1), (0, 1), (1, 1)]) == wilson(2, 3)


def test_answers_that_repeat_each_other_count_once() -> None:
    repeated = clustered_share([(4, 4), (0, 4)] * 10)
    plain = wilson(40, 80)
    assert repeated.value == plain.value == 0.5
    assert repeated.high - repeated.low > 1.9 * (plain.high - plain.low)
    # As wide as if each of the 20 prompts had been answered once, but for the n/(n-1) of the variance.
    once = wilson(10, 20)
    assert repeated.low == pytest.approx(once.low, abs=0.01)


def test_independent_answers_keep_their_number_and_all_right_counts_prompts() -> None:
    assert clustered_share([(1, 2)] * 20) == wilson(20, 40)
    assert clustered_share([(5, 5)] * 8) == wilson(8, 8)
    assert clustered_share([(2, 5)]) == wilson(0.4, 1)


def test_the_clustered_interval_covers_the_truth_where_the_plain_one_does_not() -> None:
    rng = np.random.default_rng(0)
    hits = {"clustered": 0, "plain": 0}
    for _ in range(300):
        right = rng.binomial(5, rng.beta(0.5, 0.5, size=30))  # prompts are easy or hard; the mean is 1/2
        found = {
            "clustered": clustered_share([(int(one), 5) for one in right]),
            "plain": wilson(int(right.sum()), 150),
        }
        for name, one in found.items():
            hits[name] += one.low <= 0.5 <= one.high
    assert hits["clustered"] >= 0.93 * 300
    assert hits["plain"] < 0.85 * 300


def test_the_bootstrap_weighs_groups_alike_and_covers_like_the_t_interval() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 1.0, size=400).tolist()
    found = bootstrap([values])
    half = 1.96 * np.std(values) / 20
    assert found.value == pytest.approx(np.mean(values))
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.02)
    assert bootstrap([[1.0, 1.0], [0.0] * 6]).value == 0.5
    few = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert bootstrap([few]) == bootstrap([few]), "the same data, the same interval"


@pytest.mark.parametrize("members", [1, 4])
def test_a_group_of_few_gives_a_value_without_an_interval(members: int) -> None:
    found = bootstrap([[0.25] * members, [0.75] * 20])
    assert found.value == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.interval == [None, None]
    assert not math.isnan(bootstrap([[0.25] * 5, [0.75] * 20]).low)


def test_an_estimate_is_plain_json() -> None:
    assert Estimate(0.5, 0.25, 0.75).as_json() == {"value": 0.5, "low": 0.25, "high": 0.75}
