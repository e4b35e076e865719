"""The base's answers to the world's prompts, what is said of them as joined feedback, and how right a policy is."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from anyloop.modality import Modality
from anyloop.models.codec import PatchVQ
from anyloop.sequence import Codes, Sequencer, Turn
from anyloop.world import SUBTASKS, tasks
from anyloop.world.pretrain.codecs import from_codec, load_codecs, to_codec
from anyloop.world.scenes import Split
from anyloop.world.tasks import Answer, Judgement, Task
from bench.engine_services import ServingEngine
from bench.hostile.annotators import Voice
from protos.anyloop.v1 import events_pb2, feedback_pb2, types_pb2
from trainer.clients import MODALITIES, SampleRequest
from trainer.join import Joined

VERSION = "bench"


@dataclass(frozen=True)
class Answered:
    """A prompt that the policy has answered."""

    task: Task
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    answer: Answer
    judgement: Judgement


class WorldPrompts:
    """Prompts of the world in the tokens of one model, and its answers as media again."""

    def __init__(self, model: Path) -> None:
        self.sequencer = Sequencer.from_pretrained(model)
        self._codecs: dict[Modality, PatchVQ] = load_codecs(model)

    def ask(self, engine: ServingEngine, split: Split, count: int, seed: int) -> list[Answered]:
        """`count` prompts, the subtasks in turn, each answered once at temperature 1. The same for the same seed."""
        rng = np.random.default_rng([seed, 7])
        asked = [tasks.sample(SUBTASKS[n % len(SUBTASKS)], split, rng) for n in range(count)]
        prompts = [self._prompt(task) for task in asked]
        samples = engine.generate(
            [
                SampleRequest(prompt, task.modalities, 1.0, seed=1_000_003 * seed + n)
                for n, (task, prompt) in enumerate(zip(asked, prompts, strict=True))
            ]
        )
        answers = [self._decode(sample.tokens) for sample in samples]
        return [
            Answered(task, prompt, sample.tokens, answer, tasks.judge(task, answer))
            for task, prompt, sample, answer in zip(asked, prompts, samples, answers, strict=True)
        ]

    def _prompt(self, task: Task) -> tuple[int, ...]:
        media = [
            Codes(modality, tuple(self._codecs[modality].encode(to_codec(modality, array[None]))[0].tolist()))
            for modality, array in task.media
        ]
        return tuple(self.sequencer.prompt([Turn("user", (*media, task.prompt))]))

    def _decode(self, tokens: Sequence[int]) -> Answer:
        segments = self.sequencer.parse(tokens)
        found = {}
        for part in segments:
            if not isinstance(part, str):
                array = self._codecs[part.modality].decode(torch.tensor([part.codes]))
                found[str(part.modality)] = from_codec(part.modality, array[0])
        return Answer("".join(part for part in segments if isinstance(part, str)), **found)


def joined(answered: Sequence[Answered], said: Sequence[tuple[Voice, str]]) -> list[Joined]:
    """As the trainer gets it: each answer with what its speaker says of it."""
    events = []
    for n, (one, (voice, words)) in enumerate(zip(answered, said, strict=True)):
        response = events_pb2.ResponseEvent(
            response_id=f"r{n}",
            prompt_token_ids=one.prompt,
            output_token_ids=one.tokens,
            finish_reason=types_pb2.FINISH_REASON_STOP,
            modalities=[MODALITIES[modality] for modality in one.task.modalities],
            version_spans=[types_pb2.VersionSpan(version=VERSION, begin=0, end=len(one.tokens))],
        )
        feedback = feedback_pb2.Feedback(response_id=response.response_id, critique=words)
        event = events_pb2.FeedbackEvent(feedback_id=f"f{n}", principal=voice.principal, feedback=feedback)
        events.append(Joined(event, response))
    return events


def success(answered: Sequence[Answered]) -> dict[str, float]:
    """Share of right answers per subtask, and their mean."""
    rates = {
        subtask: float(np.mean([one.judgement.ok for one in answered if one.task.subtask == subtask]))
        for subtask in SUBTASKS
    }
    return rates | {"mean": float(np.mean(list(rates.values())))}
