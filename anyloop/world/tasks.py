"""The eight subtasks: sampling them, answering them rightly, and judging any answer on the media themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anyloop.modality import Modality
from anyloop.world import language
from anyloop.world.perceive import UNCLEAR, perceive_clip, perceive_picture, perceive_sentence, perceive_sound
from anyloop.world.render import render_clip, render_picture, render_sound
from anyloop.world.scenes import Clip, Picture, Scene, Sound, Split, Things, changed, other_value, sample_scene

SUBTASKS = ("T2T", "TI2T", "T2I", "TI2TI", "TA2T", "T2A", "TV2T", "T2V")

Media = np.ndarray
# uint8 [64, 64, 3] pictures, float32 [6144] sounds, uint8 [8, 64, 64, 3] videos

_KIND: dict[str, type[Scene]] = {
    "T2T": Things,
    "TI2T": Picture,
    "T2I": Picture,
    "TI2TI": Picture,
    "TA2T": Sound,
    "T2A": Sound,
    "TV2T": Clip,
    "T2V": Clip,
}
_ANSWERS: dict[str, tuple[Modality, ...]] = {
    "T2T": (Modality.TEXT,),
    "TI2T": (Modality.TEXT,),
    "T2I": (Modality.IMAGE,),
    "TI2TI": (Modality.TEXT, Modality.IMAGE),
    "TA2T": (Modality.TEXT,),
    "T2A": (Modality.AUDIO,),
    "TV2T": (Modality.TEXT,),
    "T2V": (Modality.VIDEO,),
}
MEDIUM_OF: dict[type[Scene], Modality] = {Picture: Modality.IMAGE, Sound: Modality.AUDIO, Clip: Modality.VIDEO}
_PERCEIVE: dict[Modality, Callable[[np.ndarray], dict[str, str]]] = {
    Modality.IMAGE: perceive_picture,
    Modality.AUDIO: perceive_sound,
    Modality.VIDEO: perceive_clip,
}


@dataclass(frozen=True)
class Task:
    """One request. `scene` is what a right answer shows or says; `source` is what an edit begins from."""

    subtask: str
    prompt: str
    scene: Scene
    source: Scene | None = None
    media: tuple[tuple[Modality, Media], ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        return _ANSWERS[self.subtask]

    @property
    def expected(self) -> str:
        return language.describe(self.scene)


@dataclass(frozen=True)
class Answer:
    """A response as a person gets it: decoded files as arrays, and words."""

    text: str = ""
    image: Media | None = None
    audio: Media | None = None
    video: Media | None = None

    def medium(self, modality: Modality) -> Any:
        return {Modality.IMAGE: self.image, Modality.AUDIO: self.audio, Modality.VIDEO: self.video}[modality]


@dataclass(frozen=True)
class Fault:
    """`part` (a modality of the answer) shows `got` where `expected` was asked for."""

    dimension: str
    expected: str
    got: str
    part: Modality


@dataclass(frozen=True)
class Judgement:
    failed: tuple[Fault, ...]
    dimensions: int

    @property
    def ok(self) -> bool:
        return not self.failed


def render(scene: Scene, rng: np.random.Generator, jitter: float = 0.0) -> Media:
    """The medium of a picture, sound or clip."""
    if isinstance(scene, Picture):
        return render_picture(scene, rng, jitter)
    if isinstance(scene, Sound):
        return render_sound(scene, rng, jitter / 100)
    assert isinstance(scene, Clip)
    return render_clip(scene, rng, jitter)


def sample(subtask: str, split: Split, rng: np.random.Generator, with_media: bool = True) -> Task:
    """A random task of `subtask` whose answer is a combination of `split`.

    `with_media=False` leaves `media` empty, for callers that only need the words and the scenes.
    """
    scene = sample_scene(_KIND[subtask], split, rng)
    if subtask in ("T2I", "T2A", "T2V"):
        return Task(subtask, language.ask(subtask, scene, rng), scene)
    if subtask in ("TI2T", "TA2T", "TV2T"):
        return Task(subtask, language.ask(subtask, scene, rng), scene, media=_input(scene, rng, with_media))
    if subtask == "TI2TI":
        source, edits = _before(scene, rng, 1)
        return Task(subtask, edits, scene, source, _input(source, rng, with_media))
    source, edits = _before(scene, rng, 2)
    assert isinstance(source, Things)
    return Task(subtask, language.story(source, edits, rng), scene, source)


def _input(scene: Scene, rng: np.random.Generator, with_media: bool) -> tuple[tuple[Modality, Media], ...]:
    return ((MEDIUM_OF[type(scene)], render(scene, rng)),) if with_media else ()


def _before(scene: Scene, rng: np.random.Generator, most: int) -> tuple[Scene, str]:
    """A scene of the train split (pictures) from which one to `most` edits lead to `scene`, and the edits in words."""
    while True:
        count = int(rng.integers(1, most + 1))
        dimensions = [str(name) for name in rng.choice(list(scene.VALUES), count, replace=False)]
        source = scene
        for dimension in dimensions:
            source = changed(source, dimension, other_value(scene, dimension, rng))
        if source.split == "train":
            break
    edits = " ".join(language.edit(dimension, getattr(scene, dimension), rng) for dimension in dimensions)
    return source, edits


def answer_with(task: Task, said: Scene, shown: Scene, rng: np.random.Generator) -> Answer:
    """An answer that says one scene and shows another (the same one, when it is right)."""
    text = language.answer_sentence(said, rng) if Modality.TEXT in task.modalities else ""
    media = {str(m): render(shown, rng) for m in task.modalities if m is not Modality.TEXT}
    return Answer(text, media.get("image"), media.get("audio"), media.get("video"))


def right_answer(task: Task, rng: np.random.Generator) -> Answer:
    return answer_with(task, task.scene, task.scene, rng)


def judge(task: Task, answer: Answer) -> Judgement:
    """Which dimensions of which part are wrong. Measures the media and the words of `answer`, nothing else."""
    faults: list[Fault] = []
    kind = type(task.scene)
    for part in task.modalities:
        seen = _perceive_part(answer, part, kind)
        for dimension, expected in task.scene.attributes().items():
            if seen[dimension] != expected:
                faults.append(Fault(dimension, expected, seen[dimension], part))
    return Judgement(tuple(faults), len(kind.VALUES) * len(task.modalities))


def _perceive_part(answer: Answer, part: Modality, kind: type[Scene]) -> dict[str, str]:
    if part is Modality.TEXT:
        return perceive_sentence(answer.text, kind)
    medium = answer.medium(part)
    return _PERCEIVE[part](medium) if medium is not None else dict.fromkeys(kind.VALUES, UNCLEAR)


def shown_in(answer: Answer, part: Modality, kind: type[Scene]) -> Scene | None:
    """The scene that a part of the answer shows or says; None when a dimension cannot be told."""
    seen = _perceive_part(answer, part, kind)
    return None if UNCLEAR in seen.values() else kind(**seen)


def success_rate(judgements: Sequence[Judgement]) -> float:
    """Share of answers without a fault; NaN for none."""
    return float(np.mean([judgement.ok for judgement in judgements])) if judgements else float("nan")
