"""The reward model's filter: who teaches it, who is judged by which, what is reported."""

from pathlib import Path

import pytest
import torch

from trainer.algorithms.reward_model import TrainedReward
from trainer.batches import TokenSequence
from trainer.examples import Pair
from trainer.optimisation import OptimConfig
from trainer.pair_filter import FEWEST, by_reward
from trainer.self_improving import Refined

OPTIM = OptimConfig()


def refined(number: int, approved: bool | None, better: float = 1.0) -> Refined:
    """The answer's first token says by how much the refinement is better, in tenths."""
    return Refined(Pair((number,), (100 + round(10 * better),), (100,), "self-improving", f"r{number}"), approved)


class Taught(TrainedReward):
    def open(self, optim: OptimConfig):  # type: ignore[no-untyped-def]
        def score(sequences: list[TokenSequence]) -> list[float]:
            return [sequence.answer[0] / 10 for sequence in sequences]

        return score


class Trainer:
    def __init__(self) -> None:
        self.lessons: list[list[Pair]] = []

    def __call__(self, pairs: list[Pair]) -> TrainedReward:
        self.lessons.append(pairs)
        return Taught(Path("nowhere"), {"w": torch.zeros(1)})


def test_what_scores_a_margin_above_its_answer_is_kept_whatever_the_critique_model_says() -> None:
    some = [refined(n, True, 1.0) for n in range(40)]
    some += [refined(50, False, 2.0), refined(51, False, 0.2), refined(52, True, 0.2)]
    kept, metrics = by_reward(some, [], Trainer(), list, 0.5, OPTIM)
    assert [pair.source for pair in kept] == [f"r{n}" for n in range(40)] + ["r50"]
    assert metrics["filter_kept"] == {"none": 43, "critique": 41, "reward": 41}
    assert metrics["filter_agreement"] == pytest.approx(41 / 43)


def test_people_teach_both_judges_and_no_confident_pair_judges_itself() -> None:
    some = [refined(n, n % 4 > 0) for n in range(40)]
    people = [Pair((9,), (8,), (7,), "preference", f"own{n}") for n in range(5)]
    train = Trainer()
    by_reward(some, people, train, list, 0.0, OPTIM)
    first, second = ([pair.source for pair in lesson] for lesson in train.lessons)
    assert first[:5] == second[:5] == [f"own{n}" for n in range(5)]
    assert not set(first[5:]) & set(second[5:])
    assert set(first[5:]) | set(second[5:]) == {f"r{n}" for n in range(40) if n % 4}


def test_too_few_pairs_teach_no_reward_model_and_the_critique_model_filters() -> None:
    train = Trainer()
    some = [refined(n, n < 3) for n in range(FEWEST)]
    kept, metrics = by_reward(some, [], train, list, 0.5, OPTIM)
    assert [pair.source for pair in kept] == ["r0", "r1", "r2"]
    assert metrics["filter_fell_back"] is True
    assert train.lessons == []
