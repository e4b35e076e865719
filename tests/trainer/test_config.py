"""Settings are flat for users and grouped for the algorithms; the defaults stand once, in the algorithms."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from trainer.algorithms.dpo import DPOConfig
from trainer.algorithms.feedback_modelling import FeedbackModellingConfig
from trainer.algorithms.grpo import GRPOConfig
from trainer.algorithms.ppo import PPOConfig
from trainer.algorithms.reward_model import RewardConfig
from trainer.config import TrainerSettings
from trainer.optimisation import OptimConfig
from trainer.robust import RobustConfig

ROOT = Path(__file__).parents[2]
PARTS = [
    ("critique", "critique_", FeedbackModellingConfig),
    ("dpo", "dpo_", DPOConfig),
    ("reward", "reward_", RewardConfig),
    ("ppo", "ppo_", PPOConfig),
    ("grpo", "grpo_", GRPOConfig),
    ("optim", "", OptimConfig),
    ("robust", "robust_", RobustConfig),
]


@pytest.mark.parametrize(("name", "prefix", "kind"), PARTS, ids=[part[0] for part in PARTS])
def test_every_field_of_an_algorithm_is_a_setting_with_its_default(name: str, prefix: str, kind: type) -> None:
    settings = TrainerSettings()
    flat = TrainerSettings.model_fields
    for field in fields(kind):
        setting = flat[prefix + field.name.rstrip("_")]
        assert setting.default == field.default, setting
        assert setting.annotation == kind.__annotations__[field.name], setting
    assert getattr(settings, name) == kind()


def test_an_environment_variable_reaches_the_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYLOOP_TRAINER_PPO_LAMBDA", "0.5")
    monkeypatch.setenv("ANYLOOP_TRAINER_BATCH_TOKENS", "64")
    settings = TrainerSettings(dpo_beta=0.3)
    assert (settings.ppo.lambda_, settings.optim.batch_tokens, settings.dpo.beta) == (0.5, 64, 0.3)


def test_a_rating_cannot_say_right_and_wrong_at_once() -> None:
    with pytest.raises(ValueError, match=r"wrong_rating \(0.8\) says wrong .* must not be above right_rating"):
        TrainerSettings(wrong_rating=0.8, right_rating=0.75)
    assert TrainerSettings(wrong_rating=0.75, right_rating=0.75).wrong_rating == 0.75


def test_settings_are_read_without_the_libraries_of_models() -> None:
    """`anyloop replay` asks for them before it starts anything: seconds, where transformers and DeepSpeed take ten."""
    heavy = "import sys, trainer.config; print({'transformers', 'deepspeed', 'peft'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "set()", done.stderr
