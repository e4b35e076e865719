"""People who criticise answers: honest ones, and two kinds of hostile ones.

A lie here is a good one: worded as carefully as the truth, consistent in itself, and wrong about the answer. It claims
a fault that is not there, or calls a wrong answer right and describes it as the right one would look.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anyloop.world.annotate import Annotator, Claim, checklist, phrase, what_is_there
from anyloop.world.scenes import changed, other_value
from anyloop.world.tasks import Answer, Judgement, Task

Kind = Literal["scattered", "ring"]
PEOPLE = 40
RING = 3  # principals of the ring; each lies always and says several times what an honest one says


@dataclass(frozen=True)
class Voice:
    """Who speaks about an answer, and whether this statement is a lie."""

    principal: str
    lies: bool


def voices(count: int, share: float, kind: Kind, rng: np.random.Generator) -> list[Voice]:
    """Who says what: `share` of `count` statements are lies, by anybody (`scattered`) or by a few (`ring`)."""
    lies = np.zeros(count, dtype=bool)
    lies[rng.choice(count, round(share * count), replace=False)] = True
    people = rng.integers(PEOPLE, size=count)
    ring = rng.integers(RING, size=count)
    return [
        Voice(f"ring-{ring[n]}" if kind == "ring" and lies[n] else f"person-{people[n]}", bool(lies[n]))
        for n in range(count)
    ]


def lie(task: Task, answer: Answer, judgement: Judgement, rng: np.random.Generator, hasty_share: float = 0.2) -> str:
    """A wrong critique of `answer`, careful or hasty in the same shares as an honest annotator's."""
    true = {(fault.part, fault.dimension) for fault in judgement.failed}
    if not judgement.ok and rng.random() < 0.5:  # calls it right
        if rng.random() < hasty_share:
            return "This is correct."
        return checklist(task, dict.fromkeys(task.modalities, task.scene), [])
    claims = _false_claims(task, true, rng)
    there = what_is_there(task, answer)
    if not claims or there is None or rng.random() < hasty_share:
        return phrase(claims or _anything(task, rng), len(task.modalities), rng)
    shown = dict.fromkeys(there, task.scene)
    for claim in claims:  # it is said to have what would be wrong
        shown[claim.part] = changed(shown[claim.part], claim.dimension, other_value(task.scene, claim.dimension, rng))
    return checklist(task, shown, claims)


def _false_claims(task: Task, true: set[tuple[object, str]], rng: np.random.Generator) -> list[Claim]:
    """One or two dimensions that are right, called wrong."""
    attributes = task.scene.attributes()
    free = [Claim(part, name, attributes[name]) for part in task.modalities for name in attributes]
    free = [claim for claim in free if (claim.part, claim.dimension) not in true]
    if not free:
        return []
    chosen = rng.choice(len(free), min(len(free), int(rng.integers(1, 3))), replace=False)
    return [free[n] for n in sorted(chosen)]


def _anything(task: Task, rng: np.random.Generator) -> list[Claim]:
    """A demand for what the prompt did not ask."""
    dimension = str(rng.choice(list(task.scene.VALUES)))
    return [Claim(task.modalities[-1], dimension, other_value(task.scene, dimension, rng))]


def statements(
    asked: Sequence[tuple[Task, Answer, Judgement]], speakers: Sequence[Voice], seed: int
) -> list[tuple[Voice, str]]:
    """What each speaker says of each answer. An honest statement is the same whatever the share of lies."""
    said = []
    for number, ((task, answer, judgement), voice) in enumerate(zip(asked, speakers, strict=True)):
        rng = np.random.default_rng([seed, number])
        honest = Annotator(rng, partial_share=0.1).critique(task, answer, judgement)
        said.append((voice, lie(task, answer, judgement, rng) if voice.lies else honest))
    return said
