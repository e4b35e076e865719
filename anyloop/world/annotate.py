"""An annotator: turns a judgement into what a person would say, and reads such words back exactly.

A careful critique says what the answer has and goes through what was asked for, dimension by dimension, as the
annotations of align-anything do: "It shows two large red circles on the left: two yes, small no, red yes, circle yes,
left yes." A hasty one only says what is wrong: "The size should be small."
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from anyloop.modality import Modality
from anyloop.world import language
from anyloop.world.perceive import UNCLEAR
from anyloop.world.perceive.sentence import words_of
from anyloop.world.scenes import PITCHES, Scene, Sound, other_value
from anyloop.world.tasks import Answer, Fault, Judgement, Task, right_answer, shown_in

RIGHT = ("This is correct.", "All of it is correct.", "Good, this is correct.")
VAGUE = ("This is not correct.", "That is not what I asked for.", "Something is wrong.")
_PHRASES: dict[str, tuple[str, ...]] = {
    "count": ("there should be {}", "the number should be {}", "make it {} in number"),
    "size": ("the size should be {}", "it should be {}", "make it {}"),
    "colour": ("the colour should be {}", "it should be {}", "make it {}"),
    "shape": ("the shape should be a {}", "it should be a {}", "make it a {}"),
    "position": ("it should be on the {}", "the place should be the {}", "move it to the {}"),
    "first": ("the first note should be {}", "make the first note {}"),
    "second": ("the second note should be {}", "make the second note {}"),
    "third": ("the third note should be {}", "make the third note {}"),
    "loudness": ("it should be {}", "the sound should be {}", "make it {}"),
    "timbre": ("the tone should be {}", "it should sound {}", "make the tone {}"),
    "direction": ("it should move {}", "it should go {}", "make it move {}"),
    "speed": ("it should be {}", "the speed should be {}", "make it {}"),
}
_VERB = {Modality.TEXT: "says", Modality.IMAGE: "shows", Modality.AUDIO: "plays", Modality.VIDEO: "shows"}
_PART = {Modality.TEXT: "in the text, ", Modality.IMAGE: "in the picture, "}


@dataclass(frozen=True)
class Claim:
    """One thing said: `part` should have `value` in `dimension`."""

    part: Modality
    dimension: str
    value: str


@dataclass(frozen=True)
class Reading:
    """What a critique says: right as it is, or which claims it makes (none when it is vague)."""

    right: bool
    claims: frozenset[Claim]


def true_claims(judgement: Judgement) -> frozenset[Claim]:
    return frozenset(Claim(fault.part, fault.dimension, fault.expected) for fault in judgement.failed)


def read_critique(task: Task, critique: str) -> Reading:
    """The claims of a critique of an answer to `task`, whoever wrote it."""
    claims: set[Claim] = set()
    for sentence in critique.lower().split("."):
        part = task.modalities[-1]
        opening = re.match(r"\s*it (says|shows|plays) [^:]*:", sentence)
        if opening:
            if opening[1] == "says":
                part = Modality.TEXT
            for at, item in enumerate(sentence[opening.end() :].split(",")):
                claims.update(_checked(task, part, item, at))
            continue
        for clause in re.split(r"[,;]| and ", sentence):
            if len(task.modalities) > 1:
                part = Modality.TEXT if "text" in clause else Modality.IMAGE if "picture" in clause else part
            if not clause.strip().startswith("not "):
                claims.update(_claimed(task, part, clause))
    right = "is correct" in critique.lower()
    return Reading(right and not claims, frozenset(claims))


def _checked(task: Task, part: Modality, item: str, at: int) -> set[Claim]:
    """The claim of the `at`-th item of a checklist: none if it says yes."""
    words = words_of(item)
    dimensions = list(task.scene.VALUES.items())
    if "no" not in words or at >= len(dimensions):
        return set()
    dimension, values = dimensions[at]
    return {Claim(part, dimension, word) for word in words if word in values}


def _claimed(task: Task, part: Modality, clause: str) -> set[Claim]:
    """What a clause such as "the size should be small" asks for."""
    kind, words = type(task.scene), words_of(clause)
    claims: set[Claim] = set()
    for dimension, values in kind.VALUES.items():
        if kind is Sound and values is PITCHES and dimension not in words:
            continue
        said = [word for word in words if word in values]
        if dimension == "count":
            said = [word for word in said if word != "one" or not {"a", "an"} & set(clause.split())]
        claims.update(Claim(part, dimension, word) for word in said)
    return claims


def names_exactly(task: Task, critique: str, judgement: Judgement) -> bool:
    """Whether a critique says all that is wrong, nothing else, and 'right' only of what is right."""
    reading = read_critique(task, critique)
    return reading.claims == true_claims(judgement) and reading.right == judgement.ok


def checklist(task: Task, there: Mapping[Modality, Scene], faults: Collection[Claim]) -> str:
    """What each part of the answer has, and yes or no for everything asked for; the verdict, where all is yes."""
    sentences = []
    for part, scene in there.items():
        wrong = {claim.dimension for claim in faults if claim.part is part}
        marks = [f"{value} {'no' if name in wrong else 'yes'}" for name, value in task.scene.attributes().items()]
        sentences.append(f"It {_VERB[part]} {language.describe(scene)}: {', '.join(marks)}.")
    return " ".join(sentences if faults else [*sentences, RIGHT[0]])


def what_is_there(task: Task, answer: Answer) -> dict[Modality, Scene] | None:
    """The scene that each part of the answer has; None when one cannot be told."""
    found = {part: shown_in(answer, part, type(task.scene)) for part in task.modalities}
    told = {part: scene for part, scene in found.items() if scene is not None}
    return told if len(told) == len(found) else None


def phrase(faults: list[Claim], parts: int, rng: np.random.Generator, got: dict[Claim, str] | None = None) -> str:
    """Claims as one sentence, in varied wording; with `got`, some add what was there instead."""
    said, before = [], None
    for claim in faults:
        text = language.pick(rng, _PHRASES[claim.dimension]).format(claim.value)
        was = (got or {}).get(claim, UNCLEAR)
        if was != UNCLEAR and rng.random() < 0.25:
            text += f", not {was}"
        if parts > 1 and claim.part is not before:
            text = _PART[claim.part] + text
        before = claim.part
        said.append(text)
    sentence = " and ".join(said)
    return sentence[0].upper() + sentence[1:] + "."


class Annotator:
    """A person with habits: shares of wrong, vague, partial (some of several faults) and hasty critiques."""

    def __init__(
        self,
        rng: np.random.Generator,
        wrong_share: float = 0.0,
        vague_share: float = 0.0,
        partial_share: float = 0.0,
        hasty_share: float = 0.2,
    ) -> None:
        self._rng = rng
        self.hasty_share = hasty_share
        self.wrong_share, self.vague_share, self.partial_share = wrong_share, vague_share, partial_share

    def critique(self, task: Task, answer: Answer, judgement: Judgement) -> str:
        """What this person says about `answer`."""
        rng = self._rng
        if rng.random() < self.wrong_share:
            return self._wrong(task, judgement)
        if judgement.ok:
            return self._careful(task, answer, []) or language.pick(rng, RIGHT)
        if rng.random() < self.vague_share:
            return language.pick(rng, VAGUE)
        faults = list(judgement.failed)
        if len(faults) > 1 and rng.random() < self.partial_share:
            keep = sorted(rng.choice(len(faults), int(rng.integers(1, len(faults))), replace=False))
            faults = [faults[at] for at in keep]
        claims = [Claim(fault.part, fault.dimension, fault.expected) for fault in faults]
        return self._careful(task, answer, claims) or self._hasty(task, faults, claims)

    def _careful(self, task: Task, answer: Answer, claims: list[Claim]) -> str:
        """Empty when this person is in a hurry, or cannot tell what the answer shows."""
        there = what_is_there(task, answer)
        if there is None or self._rng.random() < self.hasty_share:
            return ""
        return checklist(task, there, claims)

    def _hasty(self, task: Task, faults: list[Fault], claims: list[Claim]) -> str:
        got = {claim: fault.got for claim, fault in zip(claims, faults, strict=True)}
        return phrase(claims, len(task.modalities), self._rng, got)

    def _wrong(self, task: Task, judgement: Judgement) -> str:
        """Calls a wrong answer right, or asks for something that the prompt does not."""
        rng = self._rng
        if not judgement.ok and rng.random() < 0.5:
            return language.pick(rng, RIGHT)
        scene: Scene = task.scene
        dimension = str(rng.choice(list(scene.VALUES)))
        part = task.modalities[int(rng.integers(len(task.modalities)))]
        return phrase([Claim(part, dimension, other_value(scene, dimension, rng))], len(task.modalities), rng)

    def label(self, judgement: Judgement) -> bool:
        """Good or bad, subject to the same share of wrong statements."""
        return judgement.ok != (self._rng.random() < self.wrong_share)

    def rating(self, judgement: Judgement) -> float:
        """Share of the dimensions that are as they should be, 0-1."""
        return 1.0 - len(judgement.failed) / judgement.dimensions

    def refinement(self, task: Task) -> Answer:
        """How the answer should have been."""
        return right_answer(task, self._rng)
