"""What methods share: the base, annotated answers, the critique model, refined pairs, reward models."""

import asyncio
import json
import random
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file

from anyloop.config import TINY_OMNI
from anyloop.world import SUBTASKS, tasks
from anyloop.world.annotate import Annotator, names_exactly
from bench.engine_services import EngineServices, ServingEngine
from bench.paper.careless import make_careless
from bench.paper.work import EVALUATION, SLOTS, Work, remarks
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.algorithms.reward_model import TrainedReward, train_reward_model, with_critique
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest
from trainer.examples import Example, Pair, Seed
from trainer.self_improving import SelfImprover

EXACT_PROMPTS = 30  # per subtask, on which a critique model is measured
PARTIAL_CRITIQUES = 0.1  # share of critiques that name only some of several faults


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


def exactness(work: Work, critique: ServingEngine) -> float:
    """Share of a critique model's words on held-out answers that name all that is wrong and nothing else."""
    rng = np.random.default_rng([EVALUATION, work.cell.seed, 1])
    asked = [tasks.sample(name, "heldout", rng) for name in SUBTASKS for _ in range(EXACT_PROMPTS)]
    samples = work.engine.generate(
        [SampleRequest(work.render(task), task.modalities, 1.0, 96, seed=n) for n, task in enumerate(asked)]
    )
    said = remarks(critique, [TokenSequence(work.render(t), s.tokens) for t, s in zip(asked, samples, strict=True)])
    judged = [work.judge(task, sample.tokens) for task, sample in zip(asked, samples, strict=True)]
    return float(np.mean([names_exactly(*one) for one in zip(asked, said, judged, strict=True)]))


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


def refined(work: Work, role: str) -> list[Pair]:
    """The pairs that a cell of self-improving wrote."""
    records = json.loads((work.inputs[role] / "pairs.json").read_text())
    return [
        Pair(tuple(prompt), tuple(chosen), tuple(rejected), "self-improving", source)
        for prompt, chosen, rejected, source in records
    ]


def told(work: Work) -> list[Pair]:
    """The pairs that a cell learns from: refined over original, or what people preferred.

    Where both answers are as good as each other, the preference was an annotation spent for nothing.
    """
    if "pairs" in work.inputs:
        return refined(work, "pairs")
    found = []
    for number, one in enumerate(work.logged):
        if one.prefers:
            chosen, rejected = (one.answer, one.other) if one.prefers > 0 else (one.other, one.answer)
            found.append(Pair(one.prompt, chosen, rejected, "preference", str(number)))
    return found


def read(work: Work, answers: Sequence[TokenSequence]) -> list[TokenSequence]:
    """What the reward model reads: an answer and, unless it is set to less, what the critique model says of it."""
    if work.settings.reward.view == "answer":
        return list(answers)
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
