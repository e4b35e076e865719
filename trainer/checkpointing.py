"""Checkpoints of a training under way: a killed trainer goes on from the last one, to the same weights.

A checkpoint is a folder: the state of every engine and the loop's own tensors as safetensors, the position, the loop's
notes and the random generators as JSON. It is written beside, synced and renamed, and the one before it is removed
then. Weights and moments are whole and in fp32, so another number of processes, or another ZeRO stage, may go on.
"""

import base64
import hashlib
import json
import logging
import random
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from anyloop.models.digest import weights_digest
from anyloop.registry.files import sync, sync_tree
from anyloop.telemetry import metrics
from trainer.distributed import World
from trainer.engine import Engine, EngineState
from trainer.fault_points import FaultPoint, reached
from trainer.optimisation import OptimConfig

log = logging.getLogger(__name__)

FORMAT = 2
STATE = "state.json"
NOTES = "notes"  # the file of a loop's own tensors
SCRATCH = ".writing"  # the folder of a checkpoint that is being written
S = TypeVar("S")


@dataclass(frozen=True)
class SavePoint:
    """Where a training call keeps its state (a folder of its own, which all processes see) and after how many steps.

    0: never.
    """

    folder: Path
    every: int


@dataclass
class Notes:
    """What a loop must know again beside weights: JSON-able `facts`, and tensors on the CPU."""

    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def fingerprint(*inputs: object) -> str:
    """What a training call is made of, so that no checkpoint of another one is taken up: data, settings, paths by name,
    weights (a dict) by their bytes. How the work is spread over processes is left out: it does not change the result.
    """
    digest = hashlib.sha256()
    for one in inputs:
        if isinstance(one, OptimConfig):
            one = replace(one, zero_stage=0, offload="none")
        elif isinstance(one, dict):
            one = weights_digest(one)
        digest.update(repr(one.name if isinstance(one, Path) else one).encode() + b"\n")
    return digest.hexdigest()


def training_steps(
    engines: Mapping[str, Engine],
    steps: Iterable[S],
    world: World,
    saving: SavePoint | None,
    inputs: str,
    notes: Notes,
) -> Iterator[tuple[int, S]]:
    """(number, step) of every step to do; those that a checkpoint of the same `inputs` holds are skipped.

    Then engines, `notes` and random generators are as they were after them. The body of the loop is a step: a
    checkpoint is written after it, where one is due. Every process must iterate.
    """
    done = _resume(engines, world, saving, inputs, notes) if saving and saving.every else 0
    for number, step in enumerate(steps):
        if number < done:
            continue
        yield number, step
        if saving and saving.every and (number + 1) % saving.every == 0:
            _save(engines, world, saving, inputs, notes, number + 1)


def each_step(saving: SavePoint | None) -> SavePoint | None:
    """For loops whose step is long: a checkpoint after every one, where there are any."""
    return saving and replace(saving, every=min(1, saving.every))


def forget(folder: Path) -> None:
    """Removes the checkpoints below `folder`, if there are any."""
    shutil.rmtree(folder, ignore_errors=True)


def _save(engines: Mapping[str, Engine], world: World, saving: SavePoint, inputs: str, notes: Notes, done: int) -> None:
    """A checkpoint after `done` steps. A disk that does not take it costs a warning: the training itself goes on."""
    began = time.monotonic()
    states = {name: engine.state() for name, engine in engines.items()}
    generators = world.everyone(_generators())
    if world.rank:
        return
    document = {
        "format": FORMAT,
        "done": done,
        "inputs": inputs,
        "engines": {name: {"steps": one.steps, "adam_steps": one.adam_steps} for name, one in states.items()},
        "facts": notes.facts,
        "generators": generators,
    }
    tensors = {name: one.tensors for name, one in states.items()} | {NOTES: notes.tensors}
    try:
        _write(saving.folder / f"step-{done:08d}", document, tensors)
    except (OSError, SafetensorError) as error:
        log.warning("no checkpoint after step %d: %s", done, error)
        return
    metrics.TRAINER_CHECKPOINT.observe(time.monotonic() - began)
    reached(FaultPoint.TRAINING_SAVED)


def _write(target: Path, document: dict[str, Any], tensors: Mapping[str, dict[str, Tensor]]) -> None:
    scratch = target.with_name(SCRATCH)
    forget(scratch)
    try:
        scratch.mkdir(parents=True)
        for name, some in tensors.items():
            save_file({key: tensor.contiguous() for key, tensor in some.items()}, scratch / f"{name}.safetensors")
        (scratch / STATE).write_text(json.dumps(document))
        sync_tree(scratch)
        forget(target)
        scratch.rename(target)
    except BaseException:
        forget(scratch)  # or a full disk would fill with what did not fit on it
        raise
    sync(target.parent)
    for other in target.parent.iterdir():
        if other != target:
            forget(other)


def _resume(engines: Mapping[str, Engine], world: World, saving: SavePoint, inputs: str, notes: Notes) -> int:
    """Takes up the newest checkpoint of `inputs`; returns how many steps it holds."""
    found = world.from_rank0(partial(_newest, saving.folder, inputs))
    if found is None:
        return 0
    document = json.loads((found / STATE).read_text())
    for name, engine in engines.items():
        position = document["engines"][name]
        engine.load_state(
            EngineState(position["steps"], load_file(found / f"{name}.safetensors"), position["adam_steps"])
        )
    notes.facts, notes.tensors = document["facts"], load_file(found / f"{NOTES}.safetensors")
    if world.rank < len(document["generators"]):
        _restore_generators(document["generators"][world.rank])
    if world.rank == 0:
        metrics.TRAINER_RESUMED.inc()
        log.info("training goes on after step %d (%s)", document["done"], found)
    return int(document["done"])


def _newest(folder: Path, inputs: str) -> Path | None:
    """The newest whole checkpoint of these inputs."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            document = json.loads((path / STATE).read_text())
            if document["format"] != FORMAT or document["inputs"] != inputs:
                log.warning("%s is of another training: it is not taken up", path)
                continue
            for name in (*document["engines"], NOTES):
                load_file(path / f"{name}.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("%s cannot be read and is not taken up: %s", path, error)
        else:
            return path
    return None


def _generators() -> dict[str, Any]:
    """The state of this process's random generators."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # to ask an accelerator that nobody uses would take memory of it
        states["cuda"] = torch.cuda.get_rng_state()
    return {name: base64.b64encode(bytes(state.tolist())).decode() for name, state in states.items()} | {
        "python": random.getstate()
    }


def _restore_generators(states: dict[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    setters = {"torch": torch.set_rng_state, "cuda": torch.cuda.set_rng_state}
    for name, restore in setters.items():
        if name in states and (name == "torch" or torch.cuda.is_initialized()):
            restore(torch.tensor(list(base64.b64decode(states[name])), dtype=torch.uint8))
