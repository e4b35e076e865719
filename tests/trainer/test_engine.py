import itertools

import pytest

from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.engine import learning_rate


def test_the_rate_rises_then_falls_to_nothing() -> None:
    rates = [learning_rate(step, 20, 1.0, 0.1) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[2:]))
    assert rates[-1] == pytest.approx(0.0076, abs=1e-3)


def test_shards_are_equally_long_and_repeats_weigh_nothing() -> None:
    worlds = []
    for rank in range(3):
        world = World.__new__(World)
        world.size, world.rank = 3, rank
        worlds.append(world)
    shards = [world.shard([10, 11, 12, 13]) for world in worlds]
    assert {len(shard) for shard in shards} == {2}
    assert sorted(item for shard in shards for item, weight in shard if weight) == [10, 11, 12, 13]
    assert sum(weight for shard in shards for _, weight in shard) == 4


def test_a_shard_of_nothing_is_nothing() -> None:
    assert World().shard([]) == []


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYLOOP_TRAINER_ALGORITHM", "ppo")
    monkeypatch.setenv("ANYLOOP_TRAINER_DPO_BETA", "0.2")
    settings = TrainerSettings()
    assert (settings.algorithm, settings.dpo_beta) == ("ppo", 0.2)
