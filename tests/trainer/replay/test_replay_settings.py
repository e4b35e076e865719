import os

import pytest

from trainer.config import TrainerSettings
from trainer.replay import check
from trainer.replay.settings import SettingError, effective, export


def test_age_and_lineage_of_what_is_replayed_throw_nothing_away() -> None:
    settings = effective("dpo", {})
    assert settings.max_versions_behind >= 1_000_000
    assert settings.staleness_decay == 1.0
    assert min(settings.retention_days, settings.dedupe_days) >= 36_500


def test_feedback_is_spread_evenly_over_the_rounds() -> None:
    assert effective("dpo", {}, feedback=100, rounds=3).max_feedback == 34
    assert effective("dpo", {"max_feedback": "10"}, feedback=100, rounds=3).max_feedback == 10


def test_what_is_set_by_hand_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYLOOP_TRAINER_DPO_LR", "0.5")
    monkeypatch.setenv("ANYLOOP_TRAINER_DPO_BETA", "0.7")
    settings = effective("ppo", {"dpo_lr": "3e-5", "staleness_decay": "0.5"})
    assert (settings.algorithm, settings.dpo_lr, settings.staleness_decay) == ("ppo", 3e-5, 0.5)
    assert settings.dpo_beta == 0.7, "the environment of the live loop holds for the rest"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dpo_rl", "1", "did you mean dpo_lr"),
        ("dpo_lr", "fast", "dpo_lr: Input should be a valid number"),
        ("dpo_lr", "-1", "dpo_lr: Input should be greater than 0"),
        ("algorithm", "ppo", "given by --algorithm"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        effective("dpo", {name: value})


def test_the_trainer_opens_with_exactly_these(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = effective("dpo", {"dpo_lr": "3e-5", "reference": "base"}, feedback=7)
    for name in TrainerSettings.model_fields:
        monkeypatch.setenv(f"ANYLOOP_TRAINER_{name.upper()}", os.environ.get(f"ANYLOOP_TRAINER_{name.upper()}", "0"))
    export(settings)
    assert TrainerSettings() == settings


def test_the_check_prints_all_settings_or_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert check.main(["dpo", "dpo_lr=3e-5"]) == 0
    assert '"dpo_lr":0.00003' in capsys.readouterr().out.replace("3e-5", "0.00003").replace("3e-05", "0.00003")
    assert check.main(["dpo", "dpo_rl=1"]) == 2
    assert "did you mean dpo_lr" in capsys.readouterr().err
