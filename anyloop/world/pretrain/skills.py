"""What the base model can do, measured on combinations it never saw: answer, repair, and criticise."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import Qwen3ForCausalLM

from anyloop.modality import Modality
from anyloop.models.codec import PatchVQ
from anyloop.sequence import Codes, Segment, Sequencer, Turn
from anyloop.world import tasks
from anyloop.world.annotate import Annotator, names_exactly
from anyloop.world.pretrain.codecs import from_codec, to_codec
from anyloop.world.pretrain.corpus import corrupt
from anyloop.world.scenes import Split
from anyloop.world.tasks import SUBTASKS, Answer, Task


class Skills:
    """Samples answers with the model's own decoder loop and judges the decoded media."""

    def __init__(self, model: Qwen3ForCausalLM, sequencer: Sequencer, codecs: dict[Modality, PatchVQ]) -> None:
        self.model, self.sequencer, self.codecs = model, sequencer, codecs

    def turns(self, task: Task) -> list[Turn]:
        media: list[Segment] = [self.encode(modality, array) for modality, array in task.media]
        return [Turn("user", (*media, task.prompt))]

    def encode(self, modality: Modality, array: np.ndarray) -> Codes:
        codes = self.codecs[modality].encode(to_codec(modality, array[None]))
        return Codes(modality, tuple(codes[0].tolist()))

    def segments(self, answer: Answer) -> list[Segment]:
        media = [(m, answer.medium(m)) for m in self.codecs]
        return [*([answer.text] if answer.text else []), *(self.encode(m, a) for m, a in media if a is not None)]

    def decode(self, segments: Sequence[Segment]) -> Answer:
        found: dict[str, Any] = {"text": "".join(part for part in segments if isinstance(part, str))}
        for part in segments:
            if isinstance(part, Codes):
                array = self.codecs[part.modality].decode(torch.tensor([part.codes]))
                found[str(part.modality)] = from_codec(part.modality, array[0])
        return Answer(**found)

    @torch.no_grad()
    def complete_tokens(self, prompts: Sequence[list[int]], temperature: float, batch: int = 256) -> list[list[int]]:
        """Sampled continuations, each up to and with its closing token; left-padded batches of like length."""
        answers: list[list[int]] = [[] for _ in prompts]
        device, end = self.model.device, self.sequencer.layout.end
        choice: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature == 0:
            choice = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
        for at in range(0, len(order), batch):
            part = [prompts[n] for n in order[at : at + batch]]
            width = max(map(len, part))
            ids = torch.tensor([[end] * (width - len(p)) + p for p in part], device=device)
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part], device=device)
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=96, pad_token_id=end, eos_token_id=end, **choice
            )
            for n, row in zip(order[at : at + batch], out[:, width:].tolist(), strict=True):
                answers[n] = row[: row.index(end) + 1] if end in row else row
        return answers

    def complete(self, prompts: Sequence[list[int]], temperature: float) -> list[list[Segment]]:
        """`complete_tokens`, parsed."""
        return [self.sequencer.parse(tokens) for tokens in self.complete_tokens(prompts, temperature)]

    def success(self, split: Split, per_subtask: int, seed: int, temperature: float = 1.0) -> dict[str, float]:
        """Share of right answers per subtask."""
        rng = np.random.default_rng(seed)
        asked = [tasks.sample(subtask, split, rng) for subtask in SUBTASKS for _ in range(per_subtask)]
        answers = self.complete([self.sequencer.prompt(self.turns(task)) for task in asked], temperature)
        right = [tasks.judge(task, self.decode(answer)).ok for task, answer in zip(asked, answers, strict=True)]
        return _by_subtask(asked, right)

    def repair(self, split: Split, per_subtask: int, seed: int, temperature: float = 1.0) -> dict[str, float]:
        """Share of wrong answers that become right, given a right and complete critique."""
        rng = np.random.default_rng(seed)
        asked, prompts = [], []
        annotator = Annotator(rng)
        for subtask in SUBTASKS:
            for _ in range(per_subtask):
                task, answer, judgement = self._wrong_answer(subtask, split, rng)
                words = annotator.critique(task, answer, judgement)
                asked.append(task)
                prompts.append(self.sequencer.refine_prompt(self.turns(task), self.segments(answer), words))
        answers = self.complete(prompts, temperature)
        right = [tasks.judge(task, self.decode(answer)).ok for task, answer in zip(asked, answers, strict=True)]
        return _by_subtask(asked, right)

    def critique(self, split: Split, per_subtask: int, seed: int, temperature: float = 1.0) -> dict[str, float]:
        """Share of critiques that name exactly what is wrong, or that nothing is (a third of the answers are right)."""
        rng = np.random.default_rng(seed)
        asked, prompts, judgements = [], [], []
        for subtask in SUBTASKS:
            for at in range(per_subtask):
                task, answer, judgement = self._wrong_answer(subtask, split, rng)
                if at % 3 == 0:
                    answer = tasks.right_answer(task, rng)
                    judgement = tasks.judge(task, answer)
                asked.append(task)
                judgements.append(judgement)
                prompts.append(self.sequencer.critique_prompt(self.turns(task), self.segments(answer)))
        said = ["".join(p for p in out if isinstance(p, str)) for out in self.complete(prompts, temperature)]
        exact = [names_exactly(t, words, j) for t, words, j in zip(asked, said, judgements, strict=True)]
        return _by_subtask(asked, exact)

    def _wrong_answer(self, subtask: str, split: Split, rng: np.random.Generator) -> tuple[Task, Answer, Any]:
        task = tasks.sample(subtask, split, rng)
        said = corrupt(task, rng)
        answer = tasks.answer_with(task, said.words, said.shown, rng)
        return task, answer, tasks.judge(task, answer)


def _by_subtask(asked: Sequence[Task], right: Sequence[bool]) -> dict[str, float]:
    rates = {}
    for subtask in SUBTASKS:
        marks = [ok for task, ok in zip(asked, right, strict=True) if task.subtask == subtask]
        rates[subtask] = round(float(np.mean(marks)), 3)
    rates["mean"] = round(float(np.mean(list(rates.values()))), 3)
    return rates
