"""The reward model of a round, kept until the round is closed: a killed round does not make it a second time.

Made by another number of processes, or of other critiques, it would not be the same bit for bit, and a checkpoint of
PPO or GRPO belongs to one reward.
"""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from anyloop.registry.files import sync
from trainer.algorithms.reward_model import TrainedReward
from trainer.batches import TokenSequence

log = logging.getLogger(__name__)

Views = list[tuple[TokenSequence, TokenSequence]]


@dataclass(frozen=True)
class KeptReward:
    """In `folder`, of these `inputs`; of others it is made again. A disk that does not take it costs a warning."""

    folder: Path
    inputs: str

    def views(self, make: Callable[[], Views]) -> Views:
        """What the reward model reads of the chosen and the rejected answer of each pair."""
        path = self.folder / "views.json"
        try:
            found = json.loads(path.read_text())
            if found["inputs"] == self.inputs:
                chosen, rejected = ([_sequence(*one) for one in side] for side in found["views"])
                return list(zip(chosen, rejected, strict=True))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            log.warning("%s cannot be read: pairs are read again for the reward model: %s", path, error)
        made = make()
        sides = [[(one.prompt, one.answer) for one in side] for side in zip(*made, strict=True)] or [[], []]
        self._write(path, lambda to: to.write_text(json.dumps({"inputs": self.inputs, "views": sides})))
        return made

    def reward(self, checkpoint: Path, make: Callable[[], TrainedReward]) -> TrainedReward:
        """The reward model on the backbone of `checkpoint`."""
        path = self.folder / "reward.safetensors"
        try:
            with safe_open(path, framework="pt") as file:
                found = json.loads(file.metadata()["reward"])
            if found["inputs"] == self.inputs:
                log.info("the round's reward model stands already (%s)", path)
                return TrainedReward(checkpoint, load_file(path), found["view"], found["metrics"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            log.warning("%s cannot be read: the reward model is trained again: %s", path, error)
        made = make()
        said = json.dumps({"inputs": self.inputs, "view": made.view, "metrics": made.metrics})
        tensors = {name: one.contiguous() for name, one in made.tensors.items()}
        self._write(path, lambda to: save_file(tensors, to, metadata={"reward": said}))
        return made

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        scratch = path.with_name(f".{path.name}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write(scratch)
            sync(scratch)
            scratch.rename(path)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            log.warning("%s is not kept: %s", path, error)
            with suppress(OSError):
                scratch.unlink()


def _sequence(prompt: list[int], answer: list[int]) -> TokenSequence:
    return TokenSequence(tuple(prompt), tuple(answer))
