"""N processes under DeepSpeed ZeRO learn what one process learns, and take over one another's checkpoints."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.invariant.training_worker import train
from tests.models.random_omni import build_random_omni
from trainer.checkpointing import SavePoint
from trainer.distributed import World
from trainer.trained import Trained

ROOT = Path(__file__).parents[2]
STEPS = 6  # two epochs of seven pairs, three at a time


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_omni(tmp_path_factory.mktemp("omni"))


def launched(launcher: str, checkpoint: Path, out: Path, *runs: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """The worker in two processes on the CPU; alone without a launcher."""
    out.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    begin = {
        "": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", port],
        "deepspeed": [
            sys.executable,
            "-m",
            "deepspeed.launcher.runner",
            "--num_gpus=2",
            "--no_local_rank",
            "--master_port",
            port,
        ],
    }[launcher]
    script = [str(ROOT / "tests" / "invariant" / "training_worker.py"), str(checkpoint), str(out), json.dumps(runs)]
    said = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(begin + script, env=said, capture_output=True, text=True, timeout=200)


HANDED_OVER = {"zero_stage": 3, "save": True, "stop_at": 2}


def check_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Within what another order of summation does to six steps of Adam at a rate of 1e-3."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=0)


RUNS: dict[str, list[dict[str, Any]]] = {
    "deepspeed": [{"zero_stage": 3}],
    "": [{"zero_stage": 2, "offload": "optimizer"}, {"zero_stage": 3, "offload": "parameters"}],
}
Reference = Callable[[int], tuple[list[float], Trained]]


@pytest.fixture(scope="session")
def alone(checkpoint: Path) -> Reference:
    """What one process without DeepSpeed does, by LoRA's rank."""

    @cache
    def find_out(lora_rank: int) -> tuple[list[float], Trained]:
        return train(World(), checkpoint, None, lora_rank=lora_rank)

    return find_out


def check_runs(out: Path, runs: Sequence[dict[str, Any]], alone: Reference) -> None:
    """Every loss to 1e-5 of its size, and the final weights, which ZeRO-3 gathers from all processes.

    On a CPU there is nowhere to offload to: what shows there is that DeepSpeed was told, and took it. Nothing
    of an engine is left in memory when its training has ended.
    """
    for number, options in enumerate(runs):
        losses, offloads, left_over = json.loads((out / f"{number}.json").read_text())
        expected, trained = alone(options.get("lora_rank", 0))
        assert len(losses) == STEPS
        assert losses == pytest.approx(expected, rel=1e-5), options
        assert expected[-1] < 0.95 * expected[0]
        check_same(load_file(out / f"{number}.safetensors"), trained.tensors)
        assert bool(offloads[-1]) == ("offload" in options)
        assert left_over == 0


@pytest.mark.e2e
@pytest.mark.parametrize("launcher", list(RUNS), ids=["deepspeed", "alone"])
def test_processes_under_zero_agree_with_one_without(
    checkpoint: Path, tmp_path: Path, launcher: str, alone: Reference
) -> None:
    done = launched(launcher, checkpoint, tmp_path / "out", *RUNS[launcher])
    assert done.returncode == 0, done.stdout + done.stderr
    check_runs(tmp_path / "out", RUNS[launcher], alone)


@pytest.mark.e2e
def test_two_processes_agree_with_one_outlive_a_failure_of_rank_zero_and_hand_over_under_zero_three(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Reference
) -> None:
    """In one launch: trainings as above; calls of which the first fails on rank 0, and the others wait for the next for
    years; and a run that goes on, steps 1 and 2 in one process, 3 and 4 in two (both lost when rank 0 dies), 5 and 6 in
    one."""

    class Killed(Exception):
        pass

    def die_after(steps: int) -> None:
        saved: list[object] = []

        def reached(point: object) -> None:
            saved.append(point)
            if len(saved) == steps:
                raise Killed

        monkeypatch.setattr("trainer.checkpointing.reached", reached)

    expected, whole = alone(0)
    saving = SavePoint(tmp_path / "state", 1)
    die_after(2)
    with pytest.raises(Killed):
        train(World(), checkpoint, saving)
    runs = [{"zero_stage": 2}, {"zero_stage": 3, "lora_rank": 4, "activation_checkpointing": True}]
    done = launched("torchrun", checkpoint, tmp_path, *runs, {"fail": True}, HANDED_OVER)
    assert done.returncode != 0
    check_runs(tmp_path, runs, alone)
    failure, answer, days = json.loads((tmp_path / "2.json").read_text())
    assert "division" in failure
    assert answer == [["a", 0, 1], ["a", 1, 1]]
    assert days > 365
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-00000004"], done.stdout + done.stderr
    die_after(99)
    losses, trained = train(World(), checkpoint, saving)
    assert losses == pytest.approx(expected[4:], rel=1e-5)
    check_same(trained.tensors, whole.tensors)
    history = [trained.metrics[f"dpo_loss_{end}"] for end in ("first", "last")]
    assert history[0] == pytest.approx(expected[0], rel=1e-5)
