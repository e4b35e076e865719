"""Checkpoints of a training under way: when they are written, what is taken up again and what is not."""

import errno
import itertools
import json
import logging
import random
from itertools import islice
from pathlib import Path

import pytest
import torch

from trainer import checkpointing
from trainer.algorithms import feedback_modelling
from trainer.algorithms.feedback_modelling import FeedbackModellingConfig, train_critic
from trainer.answer_model import AnswerModel, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.checkpointing import Notes, SavePoint, each_step, fingerprint, training_steps
from trainer.distributed import World
from trainer.engine import Engine, open_engine
from trainer.examples import Example
from trainer.optimisation import OptimConfig

DATA = [TokenSequence((1, 2, 3 + i), (20, 21 + i, 7)) for i in range(8)]


def opened(checkpoint: Path) -> Engine:
    return open_engine(AnswerModel.load(checkpoint), 1e-2, 8, OptimConfig(), World())


def train(engine: Engine, saving: SavePoint | None, notes: Notes, inputs: str = "x", stop: int = 8) -> list[int]:
    """Steps until `stop`, as a process that is killed there; returns which."""
    done = []
    for number, data in islice(training_steps({"policy": engine}, DATA, World(), saving, inputs, notes), stop):
        batch = collate([data])
        notes.facts["losses"].append(engine.step([lambda batch=batch: -token_logprobs(engine.module, batch).mean()]))
        notes.facts["drawn"].append([random.random(), float(torch.rand(()))])
        notes.tensors["last"] = torch.tensor([number])
        done.append(number)
    return done


def fresh() -> Notes:
    return Notes({"losses": [], "drawn": []}, {"last": torch.tensor([-1])})


@pytest.fixture(autouse=True)
def seeded() -> None:
    random.seed(1)
    torch.manual_seed(1)


def folders(saving: SavePoint) -> list[str]:
    return sorted(path.name for path in saving.folder.iterdir())


def test_what_goes_on_equals_what_was_never_stopped(checkpoint: Path, tmp_path: Path) -> None:
    """Weights, moments, losses, notes and random draws, bit for bit; killed after steps 5 and 7, saved every second."""
    expected, whole = fresh(), opened(checkpoint)
    assert train(whole, None, expected) == list(range(8))
    saving = SavePoint(tmp_path / "state", 2)
    random.seed(1)
    torch.manual_seed(1)
    assert train(opened(checkpoint), saving, fresh(), stop=5) == [0, 1, 2, 3, 4]
    random.seed(99)
    torch.manual_seed(99)
    assert train(opened(checkpoint), saving, fresh(), stop=3) == [4, 5, 6]
    notes, last = fresh(), opened(checkpoint)
    assert train(last, saving, notes) == [6, 7]
    assert notes.facts == expected.facts
    assert notes.tensors["last"] == expected.tensors["last"]
    state, other = last.state(), whole.state()
    assert (state.steps, state.adam_steps) == (other.steps, other.adam_steps)
    assert state.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(state.tensors[name], other.tensors[name]) for name in state.tensors)


def test_one_whole_checkpoint_stands_at_a_time_without_a_pickle(checkpoint: Path, tmp_path: Path) -> None:
    saving = SavePoint(tmp_path / "state", 3)
    train(opened(checkpoint), saving, fresh(), stop=8)
    assert folders(saving) == ["step-00000006"]
    files = sorted(path.name for path in (saving.folder / "step-00000006").iterdir())
    assert files == ["notes.safetensors", "policy.safetensors", "state.json"]


def test_a_checkpoint_that_was_being_written_is_not_one(checkpoint: Path, tmp_path: Path) -> None:
    saving = SavePoint(tmp_path / "state", 3)
    train(opened(checkpoint), saving, fresh(), stop=4)
    (saving.folder / "step-00000003").rename(saving.folder / ".step-00000003.tmp")
    assert train(opened(checkpoint), saving, fresh(), stop=1) == [0]


def test_a_checkpoint_of_other_inputs_is_not_taken_up(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saving = SavePoint(tmp_path / "state", 3)
    train(opened(checkpoint), saving, fresh(), stop=4)
    assert train(opened(checkpoint), saving, fresh(), inputs="y", stop=4) == [0, 1, 2, 3]
    assert "another training" in caplog.text


@pytest.mark.parametrize("file", ["state.json", "policy.safetensors"])
def test_a_broken_checkpoint_costs_a_warning_and_a_start_anew(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str
) -> None:
    saving = SavePoint(tmp_path / "state", 3)
    train(opened(checkpoint), saving, fresh(), stop=4)
    (saving.folder / "step-00000003" / file).write_bytes(b"{")
    assert train(opened(checkpoint), saving, fresh(), stop=1) == [0]
    assert "cannot be read" in caplog.text


def test_a_disk_that_takes_no_checkpoint_does_not_stop_the_training(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        assert train(opened(checkpoint), SavePoint(tmp_path / "state", 3), fresh()) == list(range(8))
    assert "no checkpoint after step 3" in caplog.text


def test_a_full_disk_is_not_filled_with_unfinished_checkpoints(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The one before them stands, and nothing else."""
    saving = SavePoint(tmp_path / "state", 1)
    whole = checkpointing.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        whole(tensors, path)
        if folders(saving)[-1] == "step-00000002":
            raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(checkpointing, "save_file", full)
    train(opened(checkpoint), saving, fresh(), stop=6)
    assert folders(saving) == ["step-00000002"]
    assert caplog.text.count("no space left") == 3


def test_an_accelerator_that_nobody_uses_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: pytest.fail("this takes memory of the accelerator"))
    assert set(checkpointing._generators()) == {"torch", "python"}


@pytest.mark.parametrize("rank", [0, 4], ids=["whole", "lora"])
def test_a_critic_notes_what_it_trains_and_nothing_before_its_first_good_epoch(
    checkpoint: Path, tmp_path: Path, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And still hands back a plain model: the best epoch's, or the one it began with."""
    examples = [Example(one, str(number)) for number, one in enumerate(DATA)]
    sizes: list[int] = []
    whole = checkpointing.save_file

    def watched(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if path.stem == checkpointing.NOTES:
            sizes.append(sum(one.numel() for one in tensors.values()))
        whole(tensors, path)

    monkeypatch.setattr(checkpointing, "save_file", watched)
    optim = OptimConfig(lora_rank=rank)

    def trained(name: str) -> dict[str, torch.Tensor]:
        config = FeedbackModellingConfig(lr=1e-2, epochs=2, batch=4)
        return train_critic(
            World(), checkpoint, examples, examples, config, optim, SavePoint(tmp_path / name, 1)
        ).tensors

    start = AnswerModel.load(checkpoint).lm.state_dict()
    better = trained("better")
    losses = itertools.count(1.0)
    monkeypatch.setattr(feedback_modelling, "mean_loss", lambda *_: next(losses))
    worse = trained("worse")
    assert better.keys() == worse.keys() == start.keys()
    assert all(torch.equal(worse[name], start[name]) for name in start)
    assert not all(torch.equal(better[name], start[name]) for name in start)
    engine = open_engine(AnswerModel.load(checkpoint), 1e-2, 1, optim, World())
    own = sum(one.numel() for one in engine.trained.values())
    assert set(sizes) == {0, own}
    assert sizes[0] == 0


def test_zero_steps_mean_no_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    saving = SavePoint(tmp_path / "state", 0)
    train(opened(checkpoint), saving, fresh())
    assert not saving.folder.exists()
    assert each_step(saving) == saving
    assert each_step(SavePoint(tmp_path, 100)) == SavePoint(tmp_path, 1)


def test_a_state_of_another_model_is_refused(checkpoint: Path) -> None:
    engine = opened(checkpoint)
    state = engine.state()
    state.tensors["weight/more"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"another model.*weight/more"):
        engine.load_state(state)


def test_inputs_are_told_apart_by_what_changes_the_result() -> None:
    weights = {"a": torch.zeros(1000)}
    other = {"a": torch.zeros(1000).index_fill(0, torch.tensor([500]), 1.0)}  # the same to look at
    same = fingerprint(Path("/one/v1"), DATA, OptimConfig(), weights)
    assert fingerprint(Path("/two/v1"), DATA, OptimConfig(zero_stage=3, offload="parameters"), weights) == same
    for inputs in (
        (Path("/one/v2"), DATA, OptimConfig(), weights),
        (Path("/one/v1"), DATA[:-1], OptimConfig(), weights),
        (Path("/one/v1"), DATA, OptimConfig(lora_rank=4), weights),
        (Path("/one/v1"), DATA, OptimConfig(), other),
    ):
        assert fingerprint(*inputs) != same


def test_the_notes_may_hold_what_json_calls_no_number(checkpoint: Path, tmp_path: Path) -> None:
    saving, notes = SavePoint(tmp_path / "state", 1), fresh()
    notes.facts["best"] = float("nan")
    train(opened(checkpoint), saving, notes, stop=2)
    again = fresh()
    train(opened(checkpoint), saving, again, stop=1)
    assert again.facts["best"] != again.facts["best"]
    document = json.loads((saving.folder / "step-00000001" / "state.json").read_text())
    assert document["done"] == 1
