"""What both sides work on: the same pairs, prompts and rollouts, as token ids in one JSON file per model.

TRL takes text; it gets each token as a word of its own, so that its tokenizer gives the same ids back.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyloop.modality import Modality
from anyloop.sequence import Codes, Segment, Sequencer, Turn
from anyloop.world import SUBTASKS, tasks
from anyloop.world.pretrain.codecs import load_codecs, to_codec
from bench.engine_services import ServingEngine
from bench.trainer.plan import Workload
from trainer.algorithms.losses import group_advantages
from trainer.clients import Sample, SampleRequest

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Fixed:
    """An answer that both sides are to learn from alike."""

    prompt: Tokens
    answer: Tokens
    logprobs: tuple[float, ...]
    advantage: float


@dataclass(frozen=True)
class Material:
    """`pairs` are (prompt, chosen, rejected); every answer ends with `end`. `prompts` have the modalities asked for.

    `fixed` is empty where answers have a grammar, which TRL does not know.
    """

    pairs: list[tuple[Tokens, Tokens, Tokens]]
    prompts: list[tuple[Tokens, tuple[Modality, ...]]]
    fixed: list[Fixed]
    end: int
    start: int
    vocabulary: int

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Material:
        stored: dict[str, Any] = json.loads(path.read_text())
        return cls(
            [(tuple(prompt), tuple(chosen), tuple(rejected)) for prompt, chosen, rejected in stored["pairs"]],
            [(tuple(prompt), tuple(Modality(one) for one in modalities)) for prompt, modalities in stored["prompts"]],
            [
                Fixed(tuple(one["prompt"]), tuple(one["answer"]), tuple(one["logprobs"]), one["advantage"])
                for one in stored["fixed"]
            ],
            stored["end"],
            stored["start"],
            stored["vocabulary"],
        )


def make(workload: Workload, model: Path) -> Material:
    """The same for the same workload."""
    sequencer = Sequencer.from_pretrained(model)
    vocabulary = int(json.loads((model / "config.json").read_text())["vocab_size"])
    pairs = (workload.steps + 1) * workload.pairs
    prompts = (workload.online_steps + 1) * workload.prompts
    begin, end = sequencer.layout.special("bos"), sequencer.layout.end
    if workload.prompt is None:
        asked = world_prompts(model, max(pairs, prompts))
        made = sampled_pairs(model, asked[:pairs], workload.max_tokens)
        return Material(made, asked[:prompts], [], end, begin, vocabulary)
    rng = random.Random(0)

    def draw(bounds: tuple[int, int] = workload.prompt) -> Tokens:
        return tuple(rng.randrange(sequencer.layout.text_tokens) for _ in range(rng.randint(*bounds)))

    made = [(draw(workload.prompt), (*draw(workload.answer), end), (*draw(workload.answer), end)) for _ in range(pairs)]
    asked = [(draw(workload.prompt), (Modality.TEXT,)) for _ in range(prompts)]
    return Material(
        made,
        asked,
        fixed_rollouts(model, asked[: workload.prompts], workload),
        end,
        begin,
        vocabulary,
    )


def world_prompts(model: Path, count: int) -> list[tuple[Tokens, tuple[Modality, ...]]]:
    """Prompts of the world's eight subtasks in turn, media among them as codes."""
    sequencer, codecs = Sequencer.from_pretrained(model), load_codecs(model)
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        task = tasks.sample(SUBTASKS[number % len(SUBTASKS)], "train", rng)
        media: list[Segment] = [
            Codes(modality, tuple(codecs[modality].encode(to_codec(modality, array[None]))[0].tolist()))
            for modality, array in task.media
        ]
        prompt = sequencer.prompt([Turn("user", (*media, task.prompt))])
        found.append((tuple(prompt), tuple(task.modalities)))
    return found


def sampled_pairs(
    model: Path, asked: list[tuple[Tokens, tuple[Modality, ...]]], max_tokens: int
) -> list[tuple[Tokens, Tokens, Tokens]]:
    """Two of the model's own answers to each prompt."""
    samples = sample(model, asked, 2, max_tokens)
    end = Sequencer.from_pretrained(model).layout.end
    answers = [one.tokens if one.tokens[-1] == end else (*one.tokens, end) for one in samples]
    return [(prompt, answers[2 * i], answers[2 * i + 1]) for i, (prompt, _) in enumerate(asked)]


def fixed_rollouts(model: Path, asked: list[tuple[Tokens, tuple[Modality, ...]]], workload: Workload) -> list[Fixed]:
    """A group of answers to each prompt, with the engine's log-probabilities and advantages within the group."""
    samples = sample(model, asked, workload.group, workload.max_tokens)
    groups = torch.arange(len(samples)) // workload.group
    advantages = group_advantages(torch.tensor([reward(one.tokens) for one in samples]), groups, "group").tolist()
    return [
        Fixed(asked[number // workload.group][0], one.tokens, one.logprobs, advantages[number])
        for number, one in enumerate(samples)
    ]


def sample(model: Path, asked: list[tuple[Tokens, tuple[Modality, ...]]], each: int, max_tokens: int) -> list[Sample]:
    engine = ServingEngine(model)
    engine.load("base", model)
    return engine.generate(
        [
            SampleRequest(prompt, modalities, 1.0, max_tokens, seed=each * number + which)
            for number, (prompt, modalities) in enumerate(asked)
            for which in range(each)
        ]
    )


def reward(answer: Tokens) -> float:
    """Of both sides: the share of even tokens. Costs nothing, and differs between answers."""
    return sum(token % 2 == 0 for token in answer) / max(len(answer), 1)
