"""What each kind of cell does, with the trainer's own functions and the serving engine in this process.

A seed and a round have one set of prompts, the logged answers to them, and people's annotations of the first of these:
a critique of the answer, or which of two answers is better. Every method may use all prompts, and as many annotations
as its cell says.
"""

import asyncio
import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from anyloop.config import TINY_OMNI
from anyloop.modality import Modality
from anyloop.world import SUBTASKS, tasks
from anyloop.world.annotate import Annotator, names_exactly
from anyloop.world.pretrain.codecs import load_codecs
from anyloop.world.pretrain.skills import Skills
from anyloop.world.tasks import Judgement, Task
from bench.engine_services import EngineServices, ServingEngine
from bench.paper.careless import make_careless
from bench.paper.plan import Cell
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.algorithms.grpo import train_grpo
from trainer.algorithms.ppo import train_ppo
from trainer.algorithms.reward_model import TrainedReward, train_reward_model, with_critique
from trainer.algorithms.rollout import Rollout
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.examples import Example, Pair, Seed
from trainer.publish import stored_weights, write_checkpoint
from trainer.rollouts import as_rollout, rollout_requests, whole_answers
from trainer.self_improving import SelfImprover

SLOTS = 128
BEST_OF = 4
PARTIAL_CRITIQUES = 0.1  # share of critiques that name only some of several faults
# Over the trainer's defaults; chosen on combinations of the gate's split, with a seed of its own (docs/results.md).
SETTINGS: dict[str, Any] = {
    "max_pairs": 100_000,
    "max_fresh": 100_000,
    "fresh_per_prompt": 1,
}
OWN: dict[str, dict[str, Any]] = {
    "dpo": {"dpo_lr": 4e-4, "dpo_epochs": 4},
    "llf-dpo": {"dpo_lr": 2e-4, "dpo_epochs": 2},
}
_EVALUATION = 990_001  # of the held-out prompts and the answers to them


@dataclass(frozen=True)
class Logged:
    """A prompt with the answer that was logged, another one, and what people said."""

    prompt: tuple[int, ...]
    modalities: tuple[Modality, ...]
    answer: tuple[int, ...]
    other: tuple[int, ...]
    critique: str  # "" where nobody was asked
    prefers: int  # 1: the answer, -1: the other, 0: neither is better, or nobody was asked


class Work:
    """A cell at work: its inputs, its engines, its settings."""

    def __init__(self, cell: Cell, inputs: dict[str, Path], folder: Path) -> None:
        self.cell, self.inputs, self.folder = cell, inputs, folder
        self.world = World()
        chosen = {**SETTINGS, **OWN.get(cell.kind, {}), **dict(cell.settings), "seed": cell.seed}
        self.settings = TrainerSettings(**chosen)

    @property
    def base(self) -> Path:
        """The policy that the round begins with."""
        return self.inputs["policy" if "policy" in self.inputs else "model"] / "policy"

    @cached_property
    def engine(self) -> ServingEngine:
        engine = ServingEngine(self.base, SLOTS)
        engine.load("base", self.base)
        return engine

    @cached_property
    def critic(self) -> ServingEngine:
        """The critique model that people's words have taught; the careless one for methods without words."""
        folder = self.inputs["critic"] / "critique" if "critic" in self.inputs else self.inputs["model"] / "policy"
        engine = ServingEngine(folder, SLOTS)
        engine.load("critique", folder)
        return engine

    @cached_property
    def skills(self) -> Skills:
        """For turning world media into codes and back; the model of it answers nothing here."""
        return Skills(None, self.engine.sequencer, load_codecs(TINY_OMNI))  # type: ignore[arg-type]

    @cached_property
    def logged(self) -> list[Logged]:
        records = json.loads((self.inputs["answers"] / "answers.json").read_text())
        return [_logged(one, number < self.cell.annotations) for number, one in enumerate(records)]

    def render(self, task: Task) -> tuple[int, ...]:
        return tuple(self.engine.sequencer.prompt(self.skills.turns(task)))

    def judge(self, task: Task, answer: Sequence[int]) -> Judgement:
        return tasks.judge(task, self.skills.decode(self.engine.sequencer.parse(answer)))

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        folder = self.folder / name
        folder.mkdir(parents=True)
        write_checkpoint(folder, self.base, stored_weights(self.base, tensors))
        return folder

    def learned(self, tensors: dict[str, torch.Tensor], metrics: dict[str, Any]) -> dict[str, Any]:
        self.engine.load("learned", self.write("policy", tensors), serve=False)
        return evaluated(self, "learned", metrics)


Choose = Callable[[list[TokenSequence]], list[float]]


def run_cell(cell: Cell, inputs: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Does a cell. Returns settings and metrics, of methods the outcomes too; `folder` gets what other cells need."""
    torch.set_num_threads(1)
    return _CELLS[cell.kind](Work(cell, inputs, folder))


def evaluated(work: Work, version: str, metrics: dict[str, Any], score: Choose | None = None) -> dict[str, Any]:
    """Held-out outcomes of a resident version at temperature 1; with `score`, of the best of `BEST_OF` answers."""
    rng = np.random.default_rng([_EVALUATION, work.cell.seed])
    asked = [tasks.sample(name, "heldout", rng) for name in SUBTASKS for _ in range(work.cell.evaluate)]
    prompts = [work.render(task) for task in asked]
    copies = BEST_OF if score else 1
    requests = [
        SampleRequest(prompt, task.modalities, 1.0, 96, seed=_EVALUATION + BEST_OF * number + copy, version=version)
        for number, (prompt, task) in enumerate(zip(prompts, asked, strict=True))
        for copy in range(copies)
    ]
    answers = [TokenSequence(r.prompt, s.tokens) for r, s in zip(requests, work.engine.generate(requests), strict=True)]
    if score:
        scores = score(answers)
        best = [max(range(at, at + copies), key=scores.__getitem__) for at in range(0, len(answers), copies)]
        answers = [answers[at] for at in best]
    outcomes: dict[str, list[float]] = {}
    for task, answer in zip(asked, answers, strict=True):
        outcomes.setdefault(task.subtask, []).append(float(work.judge(task, answer.answer).ok))
    return {
        "outcomes": outcomes,
        "prompts": hashlib.sha256(repr(prompts).encode()).hexdigest()[:16],
        "settings": work.settings.model_dump(),
        "metrics": metrics,
    }


# -- shared work -----------------------------------------------------------------------------------------------------


def model(work: Work) -> dict[str, Any]:
    return {"metrics": make_careless(TINY_OMNI, work.folder / "policy")}


def answers(work: Work) -> dict[str, Any]:
    """Two answers of the policy to each prompt of the round, the first of them annotated in both ways."""
    cell = work.cell
    rng = np.random.default_rng([cell.seed, cell.round])
    asked = [tasks.sample(SUBTASKS[n % len(SUBTASKS)], "train", rng) for n in range(cell.prompts)]
    prompts = [work.render(task) for task in asked]
    first = (cell.seed * 100 + cell.round) * 1_000_003
    drawn = [
        work.engine.generate(
            [
                SampleRequest(prompt, task.modalities, 1.0, 96, seed=first + 2 * n + copy)
                for n, (prompt, task) in enumerate(zip(prompts, asked, strict=True))
            ]
        )
        for copy in range(2)
    ]
    annotator = Annotator(np.random.default_rng([cell.seed, cell.round, 2]), partial_share=PARTIAL_CRITIQUES)
    records: list[dict[str, Any]] = []
    right = 0
    for task, prompt, one, two in zip(asked, prompts, *drawn, strict=True):
        judged, other = work.judge(task, one.tokens), work.judge(task, two.tokens)
        right += judged.ok
        annotated = len(records) < cell.annotations
        answer = work.skills.decode(work.engine.sequencer.parse(one.tokens))
        records.append(
            {
                "prompt": prompt,
                "modalities": [str(modality) for modality in task.modalities],
                "answer": one.tokens,
                "other": two.tokens,
                "critique": annotator.critique(task, answer, judged) if annotated else "",
                "prefers": int(np.sign(len(other.failed) - len(judged.failed))) if annotated else 0,
            }
        )
    (work.folder / "answers.json").write_text(json.dumps(records))
    telling = sum(record["prefers"] != 0 for record in records)
    return {
        "metrics": {
            "prompts": len(records),
            "right": right / len(records),
            "preferences_that_tell": telling / max(cell.annotations, 1),
        }
    }


def critic(work: Work) -> dict[str, Any]:
    """The critique model, taught by the critiques."""
    sequencer, settings = work.engine.sequencer, work.settings
    said: list[Example] = []
    for number, one in enumerate(work.logged):
        if one.critique:
            asked = sequencer.critique_prompt(sequencer.parse_prompt(one.prompt), sequencer.parse(one.answer))
            said.append(Example(TokenSequence(tuple(asked), tuple(sequencer.answer([one.critique]))), str(number)))
    start = work.inputs["previous"] / "critique" if "previous" in work.inputs else work.inputs["model"] / "policy"
    if not said:  # the control: nobody says a word, and the careless critique model goes on as it is
        shutil.copytree(start, work.folder / "critique")
        return {"settings": settings.model_dump(), "metrics": {"exact": exactness(work, work.critic)}}
    learn, held_out = split_held_out(said, settings.critique_held_out)
    anchors = [Example(TokenSequence(one.prompt, one.answer), str(n)) for n, one in enumerate(work.logged)]
    trained = train_critic(
        work.world,
        start,
        mix(learn, [], anchors, settings.critique, settings.seed),
        held_out,
        settings.critique,
        settings.optim,
    )
    folder = work.write("critique", trained.tensors)
    engine = ServingEngine(folder, SLOTS)
    engine.load("critique", folder)
    return {"settings": settings.model_dump(), "metrics": trained.metrics | {"exact": exactness(work, engine)}}


def exactness(work: Work, critique: ServingEngine, per_subtask: int = 30) -> float:
    """Share of a critique model's words on held-out answers that name all that is wrong and nothing else."""
    rng = np.random.default_rng([_EVALUATION, work.cell.seed, 1])
    asked = [tasks.sample(name, "heldout", rng) for name in SUBTASKS for _ in range(per_subtask)]
    samples = work.engine.generate(
        [SampleRequest(work.render(task), task.modalities, 1.0, 96, seed=n) for n, task in enumerate(asked)]
    )
    said = remarks(critique, [TokenSequence(work.render(t), s.tokens) for t, s in zip(asked, samples, strict=True)])
    judged = [work.judge(task, sample.tokens) for task, sample in zip(asked, samples, strict=True)]
    return float(np.mean([names_exactly(*one) for one in zip(asked, said, judged, strict=True)]))


def remarks(critique: ServingEngine, answers: Sequence[TokenSequence]) -> list[str]:
    """What a critique model says of answers."""
    sequencer = critique.sequencer
    prompts = [
        tuple(sequencer.critique_prompt(sequencer.parse_prompt(one.prompt), sequencer.parse(one.answer)))
        for one in answers
    ]
    said = critique.generate([SampleRequest(prompt, (Modality.TEXT,), 0.0, 96, seed=0) for prompt in prompts])
    return ["".join(part for part in sequencer.parse(one.tokens) if isinstance(part, str)).strip() for one in said]


def pairs(work: Work) -> dict[str, Any]:
    """Self-improving: refined over original, of logged and of fresh answers."""
    seeds = []
    for number, one in enumerate(work.logged):
        right = work.settings.says_right(one.critique) if one.critique else None
        words = one.critique if right is False else ""
        seeds.append(Seed(str(number), one.prompt, one.answer, one.modalities, right, words, 1.0))
    services: Any = EngineServices(work.engine, work.critic)
    improver = SelfImprover(services, work.engine.sequencer, work.settings, "base", seed=work.cell.seed)
    improvement = asyncio.run(improver.pairs(seeds))
    found = improvement.pairs
    random.Random(work.cell.seed).shuffle(found)
    records = [[pair.prompt, pair.chosen, pair.rejected, pair.source] for pair in found]
    (work.folder / "pairs.json").write_text(json.dumps(records))
    return {"settings": work.settings.model_dump(), "metrics": dict(improvement.counts)}


def told(work: Work) -> list[Pair]:
    """The pairs that a cell learns from: refined over original, or what people preferred.

    Where both answers are as good as each other, the preference was an annotation spent for nothing.
    """
    if "pairs" in work.inputs:
        records = json.loads((work.inputs["pairs"] / "pairs.json").read_text())
        return [
            Pair(tuple(prompt), tuple(chosen), tuple(rejected), "self-improving", source)
            for prompt, chosen, rejected, source in records
        ]
    found = []
    for number, one in enumerate(work.logged):
        if one.prefers:
            chosen, rejected = (one.answer, one.other) if one.prefers > 0 else (one.other, one.answer)
            found.append(Pair(one.prompt, chosen, rejected, "preference", str(number)))
    return found


def read(work: Work, answers: Sequence[TokenSequence]) -> list[TokenSequence]:
    """What the reward model reads: an answer, and what the critique model says of it."""
    said = remarks(work.critic, answers)
    return [with_critique(work.critic.sequencer, one, words) for one, words in zip(answers, said, strict=True)]


def reward(work: Work) -> dict[str, Any]:
    """The reward model: what it reads and how it is trained are the same for binary and for language feedback."""
    learned_from = told(work)
    start = work.inputs["critic"] / "critique" if "critic" in work.inputs else work.inputs["model"] / "policy"
    everything = read(work, [sequence for pair in learned_from for sequence in pair.sequences])
    views = list(zip(everything[0::2], everything[1::2], strict=True))
    config, optim = work.settings.reward, work.settings.optim
    trained = train_reward_model(work.world, start, learned_from, config, optim, views=views)
    save_file(trained.tensors, work.folder / "reward.safetensors")
    return {"settings": work.settings.model_dump(), "metrics": {"pairs": len(learned_from)} | trained.metrics}


def reward_of(work: Work) -> TrainedReward:
    tensors = load_file(work.inputs["llf-reward" if "llf-reward" in work.inputs else "reward"] / "reward.safetensors")
    return TrainedReward(work.inputs["model"] / "policy", tensors, work.settings.reward.view)


# -- methods ---------------------------------------------------------------------------------------------------------


def base(work: Work) -> dict[str, Any]:
    return evaluated(work, "base", {})


def dpo(work: Work) -> dict[str, Any]:
    learned_from = told(work)
    if not learned_from:  # a careless critique model may call every answer right
        return evaluated(work, "base", {"pairs": 0})
    trained = train_dpo(work.world, work.base, work.base, learned_from, [], work.settings.dpo, work.settings.optim)
    return work.learned(trained.tensors, trained.metrics)


def online(work: Work) -> dict[str, Any]:
    """PPO or GRPO: rollouts by the engine, on all prompts of the round."""
    grpo = work.cell.kind.endswith("grpo")
    settings = work.settings.model_copy(update={"algorithm": "grpo" if grpo else "ppo"})
    seeds = [Seed(str(n), one.prompt, (), one.modalities, None, "", 1.0) for n, one in enumerate(work.logged)]
    resident = "base"

    def rollouts(turn: int, weights: dict[str, torch.Tensor] | None) -> list[Rollout]:
        nonlocal resident
        if weights is not None:
            work.engine.load(f"turn-{turn}", work.write(f"turn-{turn}", weights), serve=False)
            if resident != "base":
                work.engine.unload(resident)
            resident = f"turn-{turn}"
        asked = rollout_requests(seeds, turn, settings, resident)
        samples = work.engine.generate([request for _, request in asked])
        whole = whole_answers(asked, samples)
        judged = read(work, [TokenSequence(request.prompt, one.tokens) for _, request, one in whole])
        return [
            replace(as_rollout(group, request, one, settings), judged=seen)
            for (group, request, one), seen in zip(whole, judged, strict=True)
        ]

    common = (work.world, work.base, work.base, reward_of(work), [])
    if grpo:
        trained = train_grpo(*common, settings.grpo, settings.optim, rollouts=rollouts)
    else:
        trained = train_ppo(*common, settings.ppo, settings.optim, rollouts=rollouts)
    return work.learned(trained.tensors, trained.metrics)


def best_of_n(work: Work) -> dict[str, Any]:
    """The base's answer that the reward model, or the critique model that words have taught, likes best."""

    def approval(answers: list[TokenSequence]) -> list[float]:
        return [float(work.settings.says_right(words)) for words in remarks(work.critic, answers)]

    if "critic" in work.inputs:
        return evaluated(work, "base", {"n": BEST_OF}, approval)
    score = reward_of(work).open(work.settings.optim)
    return evaluated(work, "base", {"n": BEST_OF}, lambda answers: score(read(work, answers)))


_CELLS: dict[str, Callable[[Work], dict[str, Any]]] = {
    "model": model,
    "answers": answers,
    "critic": critic,
    "pairs": pairs,
    "reward": reward,
    "llf-reward": reward,
    "base": base,
    "dpo": dpo,
    "llf-dpo": dpo,
    "ppo": online,
    "llf-ppo": online,
    "grpo": online,
    "llf-grpo": online,
    "best-of-n": best_of_n,
    "llf-best-of-n": best_of_n,
}


def _logged(record: dict[str, Any], annotated: bool) -> Logged:
    return Logged(
        tuple(record["prompt"]),
        tuple(Modality(name) for name in record["modalities"]),
        tuple(record["answer"]),
        tuple(record["other"]),
        record["critique"] if annotated else "",
        record["prefers"] if annotated else 0,
    )
