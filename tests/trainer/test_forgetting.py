"""What training costs other kinds of work, and the way back to the parent's weights."""

from pathlib import Path

import pytest
import torch

from anyloop.modality import Modality
from anyloop.sequence import Codes, Sequencer, Turn
from trainer.algorithms.dpo import DPOConfig, train_dpo
from trainer.answer_model import AnswerModel
from trainer.distributed import World
from trainer.examples import Pair
from trainer.forgetting import SHARES, Standing, changes, standing, towards, watch
from trainer.optimisation import OptimConfig

OPTIM = OptimConfig()


def words_pair(sequencer: Sequencer, number: int, chosen: str = "circle", rejected: str = "square") -> Pair:
    prompt = tuple(sequencer.prompt([Turn("user", (f"Draw {number}.",))]))
    good, bad = (tuple(sequencer.answer([text])) for text in (chosen, rejected))
    return Pair(prompt, good, bad, "preference", f"r{number}")


def picture_pair(sequencer: Sequencer, number: int) -> Pair:
    prompt = tuple(sequencer.prompt([Turn("user", (f"Draw {number}.",))]))
    good, bad = (tuple(sequencer.answer([Codes(Modality.IMAGE, (code,) * 16)])) for code in (1, 2))
    return Pair(prompt, good, bad, "preference", f"p{number}")


def test_a_signature_got_worse_where_its_margin_fell_by_more_than_chance() -> None:
    names = ["a"] * 8 + ["b"] * 8 + ["c"] * 3
    before = Standing([0.0] * 19, [1.0] * 19)
    after = Standing(
        [-0.5] * 19,
        [0.5, 0.6, 0.4, 0.5, 0.6, 0.4, 0.5, 0.5] + [0.0, 2.5, 0.5, 1.0, 1.5, 0.2, 1.9, 0.0] + [-5.0] * 3,
    )
    found = changes(names, before, after)
    assert (found["a"].worse, found["b"].worse, found["c"].worse) == (True, False, False)  # b: noise; c: too few
    assert found["a"].margin == pytest.approx(-0.5)
    assert found["a"].liked == pytest.approx(-0.5)
    assert changes(names, before, before)["a"].worse is False


def test_weights_are_interpolated() -> None:
    parent, candidate = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, 2.0])}
    assert towards(parent, candidate, 0.25)["w"].tolist() == [1.0, 2.0]
    assert towards(parent, candidate, 1.0)["w"].tolist() == [4.0, 2.0]


@pytest.fixture(scope="module")
def unlearned(checkpoint: Path, sequencer: Sequencer) -> dict[str, torch.Tensor]:
    """The parent after training on the reverse of what is watched for words."""
    pairs = [words_pair(sequencer, number, "square", "circle") for number in range(12)]
    config = DPOConfig(lr=2e-3, epochs=4, batch=4, sft_coefficient=0.0)
    return train_dpo(World(), checkpoint, checkpoint, pairs, [], config, OPTIM).tensors


def test_a_round_that_unlearns_is_seen_and_published_all_the_same_where_it_is_only_watched(
    checkpoint: Path, sequencer: Sequencer, unlearned: dict[str, torch.Tensor]
) -> None:
    watched = [words_pair(sequencer, number) for number in range(20, 30)]
    tensors, seen = watch(checkpoint, unlearned, watched, sequencer.layout, 4096, average=False)
    assert tensors is unlearned
    assert seen["forgotten"] == ["text>text"]
    assert seen["watched"]["text>text"]["margin"] < 0
    assert (seen["watched_pairs"], seen["forgetting_share_kept"]) == (10, 1.0)


def test_averaging_goes_back_until_nothing_is_lost_or_to_the_last_share(
    checkpoint: Path, sequencer: Sequencer, unlearned: dict[str, torch.Tensor]
) -> None:
    watched = [words_pair(sequencer, number) for number in range(20, 30)]
    tensors, seen = watch(checkpoint, unlearned, watched, sequencer.layout, 4096, average=True)
    assert seen["forgetting_share_kept"] == SHARES[-1]  # it unlearns all the way
    parent = AnswerModel.load(checkpoint).lm.state_dict()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, torch.lerp(parent[name], unlearned[name], SHARES[-1]))
    module = AnswerModel.load(checkpoint)
    module.lm.load_state_dict(tensors)
    now = standing(module, watched, 4096)
    module.lm.load_state_dict(unlearned)
    then = standing(module, watched, 4096)
    assert sum(now.margins) > sum(then.margins)


def test_nothing_is_lost_by_a_round_that_learns_what_is_watched(checkpoint: Path, sequencer: Sequencer) -> None:
    pairs = [words_pair(sequencer, number) for number in range(12)]
    config = DPOConfig(lr=2e-3, epochs=3, batch=4, sft_coefficient=0.0)
    trained = train_dpo(World(), checkpoint, checkpoint, pairs, [], config, OPTIM).tensors
    watched = [words_pair(sequencer, number) for number in range(20, 28)]
    watched += [picture_pair(sequencer, number) for number in range(2)]
    tensors, seen = watch(checkpoint, trained, watched, sequencer.layout, 4096, average=True)
    assert tensors is trained
    assert seen["forgotten"] == []
    assert set(seen["watched"]) == {"text>text", "text>image"}


def test_nothing_watched_is_nothing_said(checkpoint: Path, sequencer: Sequencer) -> None:
    assert watch(checkpoint, {}, [], sequencer.layout, 4096, average=True) == ({}, {})
