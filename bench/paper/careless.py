"""The model that every method begins with: tiny-omni, its critiques made careless.

The shipped model names what is wrong exactly when it decodes greedily, before it has heard a word of feedback: language
would have nothing to teach it. So it is trained on for a while on its own corpus, in which all but a few critiques are
careless: they call any answer right, or wrong without a reason, or blame what comes to mind. What it can see and
compare stays; that it should say so is what people's critiques have to teach.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from anyloop.sequence import Sequencer
from anyloop.world.pretrain.__main__ import batches
from anyloop.world.pretrain.codecs import load_codecs
from anyloop.world.pretrain.corpus import CodeBook, Corpus, Noise
from anyloop.world.pretrain.lm import train_lm
from trainer.publish import stored_weights, write_checkpoint

NOISE = Noise(critiques=0.95)
STEPS = 300
ROWS = 8  # packed rows of 512 tokens
LEARNING_RATE = 8e-4
_SEED = 7


def make_careless(model: Path, folder: Path) -> dict[str, Any]:
    """Writes the careless model as a checkpoint. Returns how it was trained."""
    torch.manual_seed(_SEED)
    rng = np.random.default_rng(_SEED)
    corpus = Corpus(Sequencer.from_pretrained(model), CodeBook(load_codecs(model), rng), NOISE)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True)
    losses: list[float] = []
    train_lm(lm, batches(corpus, ROWS, rng), STEPS, LEARNING_RATE, True, lambda step, loss, speed: losses.append(loss))
    folder.mkdir(parents=True)
    write_checkpoint(folder, model, stored_weights(model, lm.state_dict()))
    return {
        "careless_critiques": NOISE.critiques,
        "wrong_answers": NOISE.answers,
        "steps": STEPS,
        "learning_rate": LEARNING_RATE,
        "loss": sum(losses[-20:]) / len(losses[-20:]),
    }
