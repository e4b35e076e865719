"""The base model's training text: noisy answers, clean refinements, and half-trustworthy critiques.

Answers are wrong as often as a scraped corpus is (`Noise.answers`), so the base model samples wrong answers too and
alignment has room. Refinements are clean: given an answer and a critique, the next answer is right. Critiques are
right in `1 - Noise.critiques` of the cases; the model learns to see and compare, and feedback teaches it to be honest.
Only combinations of the train split appear.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from anyloop.modality import Modality
from anyloop.models.codec import PatchVQ
from anyloop.sequence import Codes, Segment, Sequencer, Turn
from anyloop.world import language, tasks
from anyloop.world.annotate import RIGHT, VAGUE, Claim, checklist, phrase
from anyloop.world.pretrain.codecs import KIND, to_codec
from anyloop.world.scenes import Scene, changed, other_value
from anyloop.world.tasks import SUBTASKS, Task

_VARIANTS = 6  # renderings kept per scene; a picture has four layouts at most, a clip six


@dataclass(frozen=True)
class Noise:
    """Shares of the corpus that are wrong."""

    answers: float = 0.42
    critiques: float = 0.25


@dataclass(frozen=True)
class Said:
    """An answer before it is rendered: what its words say and what its medium shows."""

    words: Scene
    shown: Scene


class CodeBook:
    """Codes of every scene's renderings, encoded once."""

    def __init__(self, codecs: dict[Modality, PatchVQ], rng: np.random.Generator) -> None:
        self._codes: dict[Scene, list[tuple[int, ...]]] = {}
        for modality, codec in codecs.items():
            for scene in KIND[modality].every():
                count = 1 if modality is Modality.AUDIO else _VARIANTS
                media = np.stack([tasks.render(scene, rng) for _ in range(count)])
                codes = codec.encode(to_codec(modality, media))
                self._codes[scene] = [tuple(row) for row in codes.tolist()]

    def draw(self, scene: Scene, rng: np.random.Generator) -> Codes:
        options = self._codes[scene]
        return Codes(tasks.MEDIUM_OF[type(scene)], options[int(rng.integers(len(options)))])


class Corpus:
    """Samples training sequences as (prompt ids, answer ids)."""

    def __init__(self, sequencer: Sequencer, book: CodeBook, noise: Noise) -> None:
        self.sequencer, self.book, self.noise = sequencer, book, noise

    def samples(self, rng: np.random.Generator) -> Iterator[tuple[list[int], list[int]]]:
        """Endless: answers, refinements and critiques, about a third each."""
        while True:
            task = tasks.sample(SUBTASKS[int(rng.integers(len(SUBTASKS)))], "train", rng, with_media=False)
            draw = rng.random()
            if draw < 0.35:
                yield self.answer(task, rng)
            elif draw < 0.65:
                yield self.refinement(task, rng)
            else:
                yield self.critique(task, rng)

    def answer(self, task: Task, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        said = corrupt(task, rng) if rng.random() < self.noise.answers else _right(task)
        return self.sequencer.prompt(self.turns(task, rng)), self.sequencer.answer(self.segments(task, said, rng))

    def refinement(self, task: Task, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        said = corrupt(task, rng) if rng.random() < 0.85 else _right(task)
        before = self.segments(task, said, rng)
        after = self.segments(task, _right(task), rng)
        words = self._remark(task, said, faults_of(task, said), rng)
        return self.sequencer.refine_prompt(self.turns(task, rng), before, words), self.sequencer.answer(after)

    def critique(self, task: Task, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        draw = rng.random()
        # Answers that are wrong in about half of all dimensions teach comparing far sooner than likely mistakes do.
        said = scramble(task, rng) if draw < 0.5 else corrupt(task, rng) if draw < 0.8 else _right(task)
        if rng.random() < self.noise.critiques:
            words = self._noisy_remark(task, rng)
        else:
            words = self._remark(task, said, faults_of(task, said), rng)
        prompt = self.sequencer.critique_prompt(self.turns(task, rng), self.segments(task, said, rng))
        return prompt, self.sequencer.answer([words])

    def turns(self, task: Task, rng: np.random.Generator) -> list[Turn]:
        """The task's prompt with its input media as codes."""
        shown = {"TI2TI": task.source, "TI2T": task.scene, "TA2T": task.scene, "TV2T": task.scene}.get(task.subtask)
        media: list[Segment] = [self.book.draw(shown, rng)] if shown is not None else []
        return [Turn("user", (*media, task.prompt))]

    def segments(self, task: Task, said: Said, rng: np.random.Generator) -> list[Segment]:
        parts: list[Segment] = []
        for modality in task.modalities:
            if modality is Modality.TEXT:
                parts.append(language.answer_sentence(said.words, rng))
            else:
                parts.append(self.book.draw(said.shown, rng))
        return parts

    def _remark(self, task: Task, said: Said, faults: list[Claim], rng: np.random.Generator) -> str:
        """A careful critique, now and then a hasty one."""
        if rng.random() < 0.85:
            return checklist(task, _parts(task, said), faults)
        return phrase(faults, len(task.modalities), rng) if faults else language.pick(rng, RIGHT)

    def _noisy_remark(self, task: Task, rng: np.random.Generator) -> str:
        """A careless critique: may see what is there, but says what comes to mind."""
        draw = rng.random()
        if draw < 0.3:
            return language.pick(rng, RIGHT)
        if draw < 0.6:
            return language.pick(rng, VAGUE)
        return phrase(faults_of(task, corrupt(task, rng), flip=True), len(task.modalities), rng)


def _right(task: Task) -> Said:
    return Said(task.scene, task.scene)


def scramble(task: Task, rng: np.random.Generator) -> Said:
    """An answer whose every dimension is right or wrong by the toss of a coin, each part on its own."""

    def toss() -> Scene:
        scene = task.scene
        for dimension in scene.VALUES:
            if rng.random() < 0.5:
                scene = changed(scene, dimension, other_value(task.scene, dimension, rng))
        return scene

    words = toss()
    return Said(words, toss() if len(task.modalities) > 1 else words)


def _parts(task: Task, said: Said) -> dict[Modality, Scene]:
    return {part: said.words if part is Modality.TEXT else said.shown for part in task.modalities}


def corrupt(task: Task, rng: np.random.Generator) -> Said:
    """A wrong answer to `task`: one or two dimensions off, or an edit forgotten; of two parts, one or both."""
    wrong = task.scene
    if task.source is not None and rng.random() < 0.4:
        differing = [d for d, value in task.scene.attributes().items() if getattr(task.source, d) != value]
        forgotten = differing[int(rng.integers(len(differing)))]
        wrong = changed(wrong, forgotten, getattr(task.source, forgotten))
    else:
        off = 1 if rng.random() < 0.8 else 2
        for dimension in rng.choice(list(wrong.VALUES), off, replace=False):
            wrong = changed(wrong, str(dimension), other_value(task.scene, str(dimension), rng))
    if len(task.modalities) > 1:
        draw = rng.random()
        if draw < 0.35:
            return Said(task.scene, wrong)
        if draw < 0.6:
            return Said(wrong, task.scene)
    return Said(wrong, wrong)


def faults_of(task: Task, said: Said, flip: bool = False) -> list[Claim]:
    """What a right critique of `said` claims. With `flip` it asks for the wrong values instead."""
    claims = []
    for part in task.modalities:
        scene = _parts(task, said)[part]
        for dimension, value in task.scene.attributes().items():
            if getattr(scene, dimension) != value:
                claims.append(Claim(part, dimension, getattr(scene, dimension) if flip else value))
    return claims


def texts(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Sentences for the tokenizer, with templates."""
    from anyloop.sequence import templates

    for name in ("CRITIQUE_PROMPT", "CRITIQUE_RESPONSE", "CRITIQUE_ASK", "REFINE_BEFORE", "REFINE_AFTER"):
        yield getattr(templates, name)
    yield from (*RIGHT, *VAGUE)
    for at in range(count):
        task = tasks.sample(SUBTASKS[at % len(SUBTASKS)], "train", rng, with_media=False)
        yield task.prompt
        yield language.answer_sentence(task.scene, rng)
        said = corrupt(task, rng)
        yield phrase(faults_of(task, said), len(task.modalities), rng)
        yield checklist(task, _parts(task, said), faults_of(task, said))


def pack(pairs: Iterator[tuple[list[int], list[int]]], rows: int, width: int) -> tuple[torch.Tensor, ...]:
    """Fills `rows` rows of `width` tokens without padding between samples.

    Returns (ids, segments, positions, loss mask), each `[rows, width]`: `segments` numbers the samples of a row from 1
    (0 is the unused end), `positions` restart in each sample, the mask is true on answer tokens.
    """
    ids = np.zeros((rows, width), dtype=np.int64)
    segments, positions = np.zeros_like(ids), np.zeros_like(ids)
    mask = np.zeros((rows, width), dtype=bool)
    used, counts = np.zeros(rows, dtype=int), np.zeros(rows, dtype=int)
    row = 0
    while row < rows:
        prompt, answer = next(pairs)
        length = len(prompt) + len(answer)
        if used[row] + length > width:
            row += 1
            if row == rows:
                break
        at = used[row]
        ids[row, at : at + length] = prompt + answer
        counts[row] += 1
        segments[row, at : at + length] = counts[row]
        positions[row, at : at + length] = np.arange(length)
        mask[row, at + len(prompt) : at + length] = True
        used[row] += length
    return tuple(torch.from_numpy(array) for array in (ids, segments, positions, mask))
