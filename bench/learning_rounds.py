"""Rounds of learning from language feedback without the services: what a setting of the trainer does, in a minute.

The same functions as the trainer's, on the same kind of data; answers come from transformers' generate instead of the
serving engine. Prints, per round, how often the critique model names exactly what is wrong and how often the policy is
right, both on held-out combinations, and writes bench-out/learning.json.

    python -m bench.learning_rounds --rounds 2 --prompts 320 --set dpo_lr=3e-4 --set dpo_epochs=2
"""

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from anyloop.config import TINY_OMNI
from anyloop.sequence import Segment, Sequencer
from anyloop.world import SUBTASKS, tasks
from anyloop.world.annotate import Annotator
from anyloop.world.pretrain.codecs import load_codecs
from anyloop.world.pretrain.skills import Skills
from protos.anyloop.v1 import events_pb2, feedback_pb2, types_pb2
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.batches import TokenSequence
from trainer.clients import MODALITIES, Sample, SampleRequest
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.examples import Example, form_examples
from trainer.join import Joined
from trainer.self_improving import SelfImprover

_FILES = ("config.json", "generation_config.json", "tokenizer.json", "sequence.json")


class Checkpoints:
    """A scratch folder of checkpoints in the layout that the trainer loads."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root

    def write(self, name: str, tensors: dict[str, torch.Tensor]) -> Path:
        folder = self.root / name
        folder.mkdir()
        for file in _FILES:
            shutil.copy(self.base / file, folder / file)
        model = Qwen3ForCausalLM.from_pretrained(self.base)
        model.load_state_dict(tensors)
        model.save_pretrained(folder)
        return folder


class BatchedServices:
    """Stands for the policy and critique services: collects concurrent requests and answers them in one batch."""

    def __init__(self, policy: Skills, critic: Skills) -> None:
        self._models = {"policy": policy, "critic": critic}
        self._waiting: list[tuple[str, SampleRequest, asyncio.Future[list[int]]]] = []
        self._flush: asyncio.Task[None] | None = None

    async def sample(self, request: SampleRequest) -> Sample:
        tokens = await self._ask("policy", request)
        finished = tokens[-1] == self._models["policy"].sequencer.layout.end
        return Sample(tuple(tokens), (0.0,) * len(tokens), "bench", finished)

    async def critique(self, request: SampleRequest) -> str:
        segments = self._models["critic"].sequencer.parse(await self._ask("critic", request))
        return "".join(segment for segment in segments if isinstance(segment, str)).strip()

    async def _ask(self, model: str, request: SampleRequest) -> list[int]:
        future: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._waiting.append((model, request, future))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._answer_all())
        return await future

    async def _answer_all(self) -> None:
        await asyncio.sleep(0.05)
        while self._waiting:
            taken, self._waiting = self._waiting, []
            for name, model in self._models.items():
                mine = [(request, future) for wanted, request, future in taken if wanted == name]
                if mine:
                    prompts = [list(request.prompt) for request, _ in mine]
                    answers = model.complete_tokens(prompts, mine[0][0].temperature)
                    for (_, future), tokens in zip(mine, answers, strict=True):
                        future.set_result(tokens)


def annotate(
    skills: Skills, annotator: Annotator, number: int, prompts: int, rng: np.random.Generator
) -> tuple[list[Joined], float]:
    """`prompts` logged answers with a critique each, and the share that was right."""
    asked = [tasks.sample(SUBTASKS[n % len(SUBTASKS)], "train", rng) for n in range(prompts)]
    rendered = [skills.sequencer.prompt(skills.turns(task)) for task in asked]
    joined, right = [], 0
    for n, (task, prompt, tokens) in enumerate(
        zip(asked, rendered, skills.complete_tokens(rendered, 1.0), strict=True)
    ):
        answer = skills.decode(skills.sequencer.parse(tokens))
        judgement = tasks.judge(task, answer)
        right += judgement.ok
        response = events_pb2.ResponseEvent(
            response_id=f"{number}-{n}",
            prompt_token_ids=prompt,
            output_token_ids=tokens,
            finish_reason=types_pb2.FINISH_REASON_STOP,
            modalities=[MODALITIES[modality] for modality in task.modalities],
            version_spans=[types_pb2.VersionSpan(version="bench", begin=0, end=len(tokens))],
        )
        said = feedback_pb2.Feedback(
            response_id=response.response_id, critique=annotator.critique(task, answer, judgement)
        )
        event = events_pb2.FeedbackEvent(feedback_id=f"f{number}-{n}", principal="bench", feedback=said)
        joined.append(Joined(event, response))
    return joined, right / prompts


def no_media(part: types_pb2.ContentPart) -> Segment:
    """Refinements by people do not occur here."""
    raise AssertionError("this bench gives critiques only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=TINY_OMNI)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=320, help="answers with a critique, per round")
    parser.add_argument("--eval", type=int, default=40, help="held-out prompts per subtask")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the trainer")
    options = parser.parse_args()
    transformers_logging.disable_progress_bar()
    settings = TrainerSettings(**dict(one.split("=", 1) for one in options.set))
    with tempfile.TemporaryDirectory() as scratch:
        document = run(options, settings, Checkpoints(options.model, Path(scratch)))
    Path("bench-out").mkdir(exist_ok=True)
    Path("bench-out/learning.json").write_text(json.dumps(document, indent=1) + "\n")


def run(options: argparse.Namespace, settings: TrainerSettings, checkpoints: Checkpoints) -> dict[str, Any]:
    sequencer, codecs = Sequencer.from_pretrained(options.model), load_codecs(options.model)
    world, rng = World(), np.random.default_rng([options.seed, 1])
    annotator = Annotator(np.random.default_rng([options.seed, 2]), partial_share=0.1)
    torch.manual_seed(options.seed)

    def skills_of(path: Path) -> Skills:
        return Skills(Qwen3ForCausalLM.from_pretrained(path).eval(), sequencer, codecs)

    policy_path = critic_path = options.model
    policy, replay = skills_of(policy_path), []
    rounds: list[dict[str, Any]] = []
    show("base", policy.success("heldout", options.eval, 11))
    for number in range(1, options.rounds + 1):
        began = time.monotonic()
        joined, right = annotate(policy, annotator, number, options.prompts, rng)
        examples = form_examples(joined, sequencer, settings, no_media, ["bench"])
        learn, held_out = split_held_out(examples.critiques, settings.critique_held_out)
        anchors = [Example(TokenSequence(seed.prompt, seed.answer), seed.response_id) for seed in examples.seeds]
        critic = train_critic(
            world,
            critic_path,
            mix(learn, replay, anchors, settings.critique, settings.seed),
            held_out,
            settings.critique,
            settings.optim,
        )
        replay += learn
        critic_path = checkpoints.write(f"critique-{number}", critic.tensors)
        critic_skills = skills_of(critic_path)
        exact = critic_skills.critique("heldout", options.eval, 4, settings.critique_temperature)
        show(f"round {number}, critique model names exactly what is wrong", exact)

        services: Any = BatchedServices(policy, critic_skills)
        improver = SelfImprover(services, sequencer, settings, "bench", seed=number)
        improvement = asyncio.run(improver.pairs(examples.seeds))
        pairs = examples.pairs + improvement.pairs
        random.Random(number).shuffle(pairs)
        pairs = pairs[: settings.max_pairs]
        trained = train_dpo(world, policy_path, policy_path, pairs, examples.imitations, settings.dpo, settings.optim)
        policy_path = checkpoints.write(f"policy-{number}", trained.tensors)
        policy = skills_of(policy_path)
        success = policy.success("heldout", options.eval, 11)
        show(f"round {number}, policy right", success)
        metrics = critic.metrics | dict(improvement.counts) | trained.metrics
        print("   ", short(metrics), f"{time.monotonic() - began:.0f} s", flush=True)
        rounds.append({"asked_right": right, "critique_exact": exact, "success": success, "metrics": metrics})
    return {"settings": settings.model_dump(), "rounds": rounds}


def show(title: str, rates: dict[str, float]) -> None:
    print(f"{title}: " + "  ".join(f"{name} {100 * rate:.0f}" for name, rate in rates.items()), flush=True)


def short(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in metrics.items()}


if __name__ == "__main__":
    main()
