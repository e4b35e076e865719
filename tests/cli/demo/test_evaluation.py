import numpy as np

from anyloop.cli.demo.evaluation import Evaluation, Score, scores_of
from anyloop.world import tasks
from tests.cli.demo.exchanges import right, wrong


def test_scores_count_right_answers_by_subtask() -> None:
    rng = np.random.default_rng(0)
    sounds = [tasks.sample("T2A", "train", rng) for _ in range(3)]
    texts = [tasks.sample("T2T", "train", rng) for _ in range(2)]
    scores = scores_of([right(sounds[0]), wrong(sounds[1]), wrong(sounds[2]), *map(right, texts)])
    assert scores == {"T2T": Score(2, 2), "T2A": Score(1, 3)}


def test_every_subtask_weighs_the_same_in_the_mean() -> None:
    assert Evaluation(("v",), {"T2T": Score(1, 10), "T2A": Score(2, 2)}, ()).mean == (0.1 + 1.0) / 2


def test_the_standard_error_is_that_of_a_mean_of_binomials() -> None:
    # sqrt(0.5 * 0.5 / 100 + 0.2 * 0.8 / 25) / 2 = sqrt(0.0025 + 0.0064) / 2
    evaluation = Evaluation(("v",), {"T2T": Score(50, 100), "T2A": Score(5, 25)}, ())
    assert round(evaluation.standard_error, 6) == 0.04717
