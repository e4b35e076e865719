"""A round's reward model is made once, also where the round is killed and run again."""

from pathlib import Path

import pytest
import torch

from trainer.algorithms.reward_model import TrainedReward
from trainer.batches import TokenSequence
from trainer.kept_reward import KeptReward

VIEWS = [
    (TokenSequence((1, 2), (3,)), TokenSequence((1, 2), ())),
    (TokenSequence((4,), (5, 6)), TokenSequence((4,), (7,))),
]
REWARD = TrainedReward(
    Path("policy-1"), {"head.weight": torch.tensor([[0.25, 1e-7]])}, "critique", {"reward_loss": 0.5}
)


def never() -> object:
    raise AssertionError("made a second time")


def test_what_a_killed_round_has_made_is_taken_up(tmp_path: Path) -> None:
    first = KeptReward(tmp_path / "round" / "reward", "x")
    assert first.views(lambda: VIEWS) == VIEWS
    assert first.reward(REWARD.checkpoint, lambda: REWARD) is REWARD
    again = KeptReward(tmp_path / "round" / "reward", "x")
    assert again.views(never) == VIEWS  # type: ignore[arg-type]
    found = again.reward(REWARD.checkpoint, never)  # type: ignore[arg-type]
    assert (found.checkpoint, found.view, found.metrics) == (REWARD.checkpoint, REWARD.view, REWARD.metrics)
    assert torch.equal(found.tensors["head.weight"], REWARD.tensors["head.weight"])


def test_of_other_inputs_it_is_made_again(tmp_path: Path) -> None:
    first, other = KeptReward(tmp_path, "x"), KeptReward(tmp_path, "y")
    first.views(lambda: VIEWS)
    first.reward(REWARD.checkpoint, lambda: REWARD)
    assert other.views(lambda: VIEWS[:1]) == VIEWS[:1]
    assert other.reward(REWARD.checkpoint, lambda: REWARD) is REWARD


@pytest.mark.parametrize("content", [b"{", b'{"inputs": "x"}'])
def test_broken_files_cost_a_warning(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("views.json", "reward.safetensors"):
        (tmp_path / name).write_bytes(content)
    kept = KeptReward(tmp_path, "x")
    assert kept.views(lambda: VIEWS) == VIEWS
    assert kept.reward(REWARD.checkpoint, lambda: REWARD) is REWARD
    assert caplog.text.count("cannot be read") == 2
    assert kept.views(never) == VIEWS  # type: ignore[arg-type]


def test_a_disk_that_takes_nothing_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("where the folder should be")
    kept = KeptReward(tmp_path / "file", "x")
    assert kept.views(lambda: VIEWS) == VIEWS
    assert kept.reward(REWARD.checkpoint, lambda: REWARD) is REWARD
    assert caplog.text.count("is not kept") == 2
