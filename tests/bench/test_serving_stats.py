import math

import pytest

from bench.serving.stats import Answer, apportion, figures, percentile


def test_percentiles_lie_between_the_two_nearest_ranks() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 0.0) == 1.0
    assert percentile(values, 0.5) == 2.5
    assert percentile(values, 0.99) == pytest.approx(3.97)  # numpy.percentile([1, 2, 3, 4], 99)
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_tokens_that_arrive_together_have_no_gap_between_them() -> None:
    answer = Answer(asked=10.0, arrivals=[10.5, 10.75, 11.25], counts=[2, 3, 1])
    assert answer.token_gaps == [0.0, 0.25, 0.0, 0.0, 0.5]
    assert answer.message_gaps == [0.25, 0.5]
    assert len(answer.token_gaps) == answer.tokens - 1


def test_an_answer_without_tokens_has_no_gaps() -> None:
    assert Answer(asked=1.0).token_gaps == []


def test_figures_of_two_streams() -> None:
    answers = [
        Answer(asked=0.0, arrivals=[1.0, 1.5, 2.0], counts=[1, 1, 1]),
        Answer(asked=0.5, arrivals=[1.0, 4.0], counts=[1, 4]),
    ]
    found = figures(answers, streams=2)
    assert found.tokens == 8
    assert found.shortest_answer == 3
    assert found.seconds == 4.0
    assert found.tokens_per_second == 2.0
    assert found.ttft_p50 == 0.75  # of 1.0 and 0.5
    assert found.itl_p50 == 0.25  # of 0.5, 0.5, 3, 0, 0, 0
    assert found.message_gap_p50 == 0.5  # of 0.5, 0.5, 3
    assert found.tokens_per_message == pytest.approx(8 / 5)
    assert (found.answers, found.failed, found.error) == (2, 0, "")


def test_failed_answers_are_counted_and_leave_the_latencies_alone() -> None:
    answers = [Answer(0.0, [1.0], [1]), Answer(0.0, error="HTTP/1.1 503"), Answer(0.0)]
    found = figures(answers, streams=3)
    assert (found.answers, found.failed, found.error) == (1, 2, "HTTP/1.1 503")
    assert found.tokens == 1
    assert found.to_json()["itl_p50"] is None  # JSON has no NaN


@pytest.mark.parametrize(
    ("characters", "total", "shares"),
    [
        ([4, 8, 4], 4, [1, 2, 1]),  # tokens of four characters: exact
        ([3, 9, 1], 3, [1, 1, 1]),  # a message for each token: exact
        ([1, 1, 1, 1, 4], 4, [0, 1, 1, 0, 2]),  # whole shares with the right sum
        ([], 0, []),
    ],
)
def test_tokens_are_shared_out_by_characters(characters: list[int], total: int, shares: list[int]) -> None:
    assert apportion(characters, total) == shares
    assert sum(shares) == total
