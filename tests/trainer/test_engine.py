import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.engine import learning_rate

WORKER = """
import json, sys
from pathlib import Path
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.algorithms.dpo import train_dpo
from trainer.examples import Example, Pair
from trainer.algorithms.feedback_modelling import train_critic
from trainer.batches import TokenSequence

checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
world = World()
if world.rank:
    world.serve()
else:
    pairs = [Pair((1, 2, 3 + i), (20, 21, 22, i), (30, 31 + i), "preference", str(i), 0.5 + i / 10) for i in range(7)]
    likes = [Example(TokenSequence((5, i), (6, 7)), str(i)) for i in range(3)]
    settings = TrainerSettings(dpo_lr=1e-3, dpo_epochs=2, dpo_batch=3, batch_tokens=32, critique_batch=3,
                               critique_epochs=2, critique_patience=9, zero_stage=int(sys.argv[3]))
    dpo = world.call(train_dpo, checkpoint, checkpoint, pairs, likes, settings.dpo, settings.optim)
    critic = world.call(train_critic, checkpoint, likes, likes, settings.critique, settings.optim)
    out.write_text(json.dumps({
        "moved": [dpo.metrics[n] for n in ("chosen_logprob_change", "rejected_logprob_change")],
        "critic": critic.metrics["critique_loss_after"],
        "weights": {name: float(t.double().pow(2).sum()) for name, t in dpo.tensors.items()},
    }))
world.close()
"""


def run(checkpoint: Path, out: Path, size: int, stage: int = 2) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    base = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "WORLD_SIZE": str(size),
        "LOCAL_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(checkpoint), str(out), str(stage)],
            env=base | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, "\n".join(outputs)
    return json.loads(out.read_text())


def test_two_processes_under_zero_two_agree_with_one(checkpoint: Path, tmp_path: Path) -> None:
    alone = run(checkpoint, tmp_path / "one.json", 1)
    together = run(checkpoint, tmp_path / "two.json", 2)
    assert together["moved"] == pytest.approx(alone["moved"], abs=1e-4)
    assert together["critic"] == pytest.approx(alone["critic"], abs=1e-5)
    assert together["weights"].keys() == alone["weights"].keys()
    for name, norm in alone["weights"].items():
        assert together["weights"][name] == pytest.approx(norm, rel=1e-5)


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


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYLOOP_TRAINER_ALGORITHM", "ppo")
    monkeypatch.setenv("ANYLOOP_TRAINER_DPO_BETA", "0.2")
    settings = TrainerSettings()
    assert (settings.algorithm, settings.dpo_beta) == ("ppo", 0.2)
