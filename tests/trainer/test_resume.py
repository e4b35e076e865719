"""A learner killed in the middle of a training goes on there, and learns bit for bit what it would have learned."""

import json
from pathlib import Path

import pytest

from anyloop.sequence import Sequencer
from tests.trainer.loop import Loop, open_sqlite_loop
from tests.trainer.processes import start_learner
from tests.trainer.test_fault_points import died, environment, gate_beside, learned
from trainer.fault_points import FaultPoint
from trainer.rounds import RoundRunner

# Twelve answers: pairs for several steps of two, and a critique model with as many.
OPTIONS = {"dpo_batch": 2, "critique_batch": 2, "checkpoint_every": 1}


def learn(loop: Loop, faults: dict[str, dict[str, list[int]]], **options: object) -> None:
    """A round, killed at each of `faults`, which say what checkpoints then stand of each training."""
    loop.say(12)
    said = environment(loop, **(OPTIONS | options))
    with gate_beside(loop):
        for fault, expected in faults.items():
            assert died(start_learner(said, fault)), f"{fault} was not reached"
            assert {name: steps_saved(loop, name) for name in expected} == expected
        assert not died(start_learner(said))


def steps_saved(loop: Loop, name: str) -> list[int]:
    """After how many steps of a training its checkpoints are."""
    return [
        json.loads(path.read_text())["done"] for path in (loop.home / "trainer" / "training").glob(f"*/{name}/*/*.json")
    ]


@pytest.mark.slow
def test_a_killed_training_ends_in_the_same_weights(
    loop: Loop, tmp_path: Path, checkpoint: Path, sequencer: Sequencer
) -> None:
    """Killed in the critique model's training of six steps, and in that of the policy: the second start does four more
    of the critique model's, and two of the policy's."""
    saved = FaultPoint.TRAINING_SAVED
    learn(loop, {f"{saved}:2": {"critique": [2]}, f"{saved}:6": {"critique": [6], "policy": [2]}})
    with open_sqlite_loop(tmp_path / "undisturbed", checkpoint, sequencer) as other:
        learn(other, {})
        assert learned(loop) == learned(other)
    assert not (loop.home / "trainer" / "training").exists()  # nothing is left of them


@pytest.mark.slow
def test_a_killed_ppo_round_goes_on_with_the_turn_after_its_last(
    loop: Loop, tmp_path: Path, checkpoint: Path, sequencer: Sequencer
) -> None:
    """The reward model is not made again: its critiques of the pairs are as they were."""
    options = {"algorithm": "ppo", "ppo_iterations": 2, "critique_epochs": 0, "reward_batch": 64}
    learn(loop, {f"{FaultPoint.TRAINING_SAVED}:2": {"reward": [1], "policy": [1]}}, **options)
    with open_sqlite_loop(tmp_path / "undisturbed", checkpoint, sequencer) as other:
        other.say(12)
        assert other.with_gate(other.learner(**(OPTIONS | options)))
        assert learned(loop) == learned(other)


def test_a_round_that_is_given_up_leaves_no_checkpoints(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    loop.say(4)
    learner = loop.learner(round_attempts=1)
    left = loop.home / "trainer" / "training" / "round" / "policy"

    def fail(*_: object) -> str:
        left.mkdir(parents=True)
        raise ValueError("nobody can mend this")

    monkeypatch.setattr(RoundRunner, "run", fail)
    assert learner.once()
    assert not left.exists()
