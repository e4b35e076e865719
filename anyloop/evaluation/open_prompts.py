"""Open prompts of the reference world: no `modalities` are given, so the model chooses what to answer with.

Annotators' votes over sets of modalities are a fixed table, the world's stand-in for the votes of people that
eval-anything collected: those who ask for a picture want one, four in ten with words beside it, and so on. A part of an
answer is *wanted* when at least half of the votes hold its modality; only wanted parts are scored.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from anyloop.evaluation.scores import Slot
from anyloop.modality import Modality
from anyloop.world import SUBTASKS, language, tasks
from anyloop.world.scenes import Picture, Scene, Sound, Split, changed, sample_scene
from anyloop.world.tasks import Answer, Media

T, I, A, V = Modality.TEXT, Modality.IMAGE, Modality.AUDIO, Modality.VIDEO  # noqa: E741 - the paper's letters
SLOT_OF: Mapping[Modality, Slot] = {T: "text", I: "visual", A: "audio", V: "visual"}
PERFORM = "T2TIA"  # asks for words, a picture and a sound of one thing
KINDS = (*SUBTASKS, PERFORM)
LOUDNESS_OF = {"small": "quiet", "large": "loud"}  # how a picture and a sound of one thing go together in the world

Votes = Mapping[frozenset[Modality], float]
VOTES: Mapping[str, Votes] = {
    kind: {frozenset(chosen): share for chosen, share in votes}
    for kind, votes in {
        "T2T": (((T,), 0.75), ((T, I), 0.20), ((T, I, A), 0.05)),
        "TI2T": (((T,), 0.80), ((T, I), 0.20)),
        "TA2T": (((T,), 0.80), ((T, A), 0.20)),
        "TV2T": (((T,), 0.80), ((T, V), 0.20)),
        "T2I": (((I,), 0.60), ((T, I), 0.40)),
        "T2A": (((A,), 0.60), ((T, A), 0.40)),
        "T2V": (((V,), 0.60), ((T, V), 0.40)),
        "TI2TI": (((T, I), 0.65), ((I,), 0.30), ((T,), 0.05)),
        PERFORM: (((T, I, A), 0.60), ((I, A), 0.25), ((T, I), 0.10), ((T,), 0.05)),
    }.items()
}
_ASK = (
    "Show, play and tell: {}; {}.",
    "Draw it, play it, and say what it is: {}; {}.",
    "A picture with sound: {}; {}.",
)


@dataclass(frozen=True)
class OpenPrompt:
    """`scenes` are what a right answer shows, sounds like, or says (a picture and a sound for PERFORM)."""

    kind: str
    text: str
    scenes: tuple[Scene, ...]
    media: tuple[tuple[Modality, Media], ...] = ()

    @property
    def votes(self) -> Votes:
        return VOTES[self.kind]

    @property
    def wanted(self) -> tuple[Modality, ...]:
        """The modalities that at least half of the votes hold, in the order of Modality."""
        held = {one: sum(share for chosen, share in self.votes.items() if one in chosen) for one in Modality}
        return tuple(one for one, share in held.items() if share >= 0.5)

    def expected(self, modality: Modality) -> tuple[Scene, ...]:
        """What a part of this modality is to say or show: words speak of everything, a medium of its own scene."""
        if modality is T:
            return self.scenes
        return tuple(scene for scene in self.scenes if tasks.MEDIUM_OF.get(type(scene)) is modality)


def open_prompts(per_kind: int, seed: int, split: Split = "heldout") -> list[OpenPrompt]:
    """The same prompts for the same arguments, kinds interleaved."""
    rng = np.random.default_rng([seed, 3])
    return [_sample(kind, split, rng) for _ in range(per_kind) for kind in KINDS]


def _sample(kind: str, split: Split, rng: np.random.Generator) -> OpenPrompt:
    if kind != PERFORM:
        task = tasks.sample(kind, split, rng)
        return OpenPrompt(kind, task.prompt, (task.scene,), task.media)
    picture, sound = sample_scene(Picture, split, rng), sample_scene(Sound, split, rng)
    assert isinstance(picture, Picture)
    sound = changed(sound, "loudness", LOUDNESS_OF[picture.size])
    words = language.pick(rng, _ASK).format(language.describe(picture, rng), language.describe(sound, rng))
    return OpenPrompt(kind, words, (picture, sound))


def emitted(answer: Answer) -> frozenset[Modality]:
    """The modalities that an answer has; words of nothing but space are none."""
    media = {one for one in (I, A, V) if answer.medium(one) is not None}
    return frozenset(media | ({T} if answer.text.strip() else set()))


def selection(prompt: OpenPrompt, answer: Answer) -> float:
    """alpha of one answer: the share of votes for exactly the set of modalities that it has."""
    return prompt.votes.get(emitted(answer), 0.0)
