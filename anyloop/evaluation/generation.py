"""AMG in the reference world: answers to open prompts, scored exactly on their words, pixels and samples. Pure.

Instruction following S_i: 10 times the share of the prompt's dimensions that the part has right. Synergy S_ij: the
share of dimensions on which two parts say or show the same; a picture and a sound agree when a large thing is loud and
a small one quiet, which is all that they have in common. A part that the answer lacks scores 0, and so does every
synergy with it: nothing is asked for again, and nothing is made up. `emitted` says how many answers had the part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from anyloop.evaluation.intervals import FEWEST, UNMEASURED, Estimate, bootstrap
from anyloop.evaluation.open_prompts import KINDS, LOUDNESS_OF, SLOT_OF, VOTES, OpenPrompt, emitted, selection
from anyloop.evaluation.scores import PAIRS, SLOTS, Generation, Slot, amg
from anyloop.modality import Modality
from anyloop.world.perceive import UNCLEAR, perceive_clip, perceive_picture, perceive_sentence, perceive_sound
from anyloop.world.scenes import Scene
from anyloop.world.tasks import Answer

_PERCEIVE: Mapping[Modality, Callable[[np.ndarray], dict[str, str]]] = {
    Modality.IMAGE: perceive_picture,
    Modality.AUDIO: perceive_sound,
    Modality.VIDEO: perceive_clip,
}
Pair = tuple[Slot, Slot]


@dataclass(frozen=True)
class Scored:
    """One answer to an open prompt: alpha, and S_i and S_ij of the slots that the prompt wants."""

    prompt: OpenPrompt
    chosen: frozenset[Modality]
    selection: float
    following: Mapping[Slot, float]
    synergy: Mapping[Pair, float]


@dataclass(frozen=True)
class GenerationReport:
    """`generation` holds the means that AMG is made of, `amg` its interval too (prompts of each kind drawn again).

    `present` is (answers with the part, answers that should have it) by slot; `choices` counts the sets of modalities
    by kind, as in "text+image".
    """

    generation: Generation
    amg: Estimate
    selection: Estimate
    present: Mapping[Slot, tuple[int, int]]
    choices: Mapping[str, Mapping[str, int]]
    selection_by_kind: Mapping[str, float]


def most() -> float:
    """The AMG of answers without a fault that always have the set of modalities with the most votes: the votes differ
    on every kind of prompt, so that nobody gets 30."""
    selected = float(np.mean([max(VOTES[kind].values()) for kind in KINDS]))
    return amg(Generation(selected, dict.fromkeys(SLOTS, 10.0), dict.fromkeys(PAIRS, 1.0)))


def score(prompt: OpenPrompt, answer: Answer) -> Scored:
    """Everything about one answer."""
    slots = {SLOT_OF[modality]: modality for modality in prompt.wanted}
    return Scored(
        prompt,
        emitted(answer),
        selection(prompt, answer),
        {slot: 10 * _share_right(prompt, answer, modality) for slot, modality in slots.items()},
        {(i, j): _agreement(prompt, answer, slots[i], slots[j]) for i, j in PAIRS if i in slots and j in slots},
    )


def report(scored: Sequence[Sequence[Scored]]) -> GenerationReport:
    """`scored[i]` are the answers to prompt `i`. Means are over the answers that a score applies to.

    Raises ValueError when some slot or pair was never wanted.
    """
    kinds: dict[str, list[Sequence[Scored]]] = {}
    for answers in scored:
        kinds.setdefault(answers[0].prompt.kind, []).append(answers)
    flat = [one for answers in scored for one in answers]
    chosen = {kind: [[one.selection for one in answers] for answers in group] for kind, group in kinds.items()}
    by_kind = {kind: [float(np.mean(shares)) for shares in group] for kind, group in chosen.items()}
    generation = _means(flat)
    return GenerationReport(
        generation,
        _interval(list(kinds.values()), generation),
        bootstrap(list(by_kind.values())),
        {slot: _presence(flat, slot) for slot in SLOTS},
        {kind: _choices([one for answers in group for one in answers]) for kind, group in kinds.items()},
        {kind: float(np.mean(shares)) for kind, shares in by_kind.items()},
    )


def _means(scored: Sequence[Scored]) -> Generation:
    """Selection weighs every kind the same because every kind is asked as often."""

    def mean(values: list[float], what: str) -> float:
        if not values:
            raise ValueError(f"no prompt asks for {what}: AMG needs prompts of every kind")
        return float(np.mean(values))

    return Generation(
        mean([one.selection for one in scored], "anything"),
        {slot: mean([one.following[slot] for one in scored if slot in one.following], slot) for slot in SLOTS},
        {
            pair: mean([one.synergy[pair] for one in scored if pair in one.synergy], " and ".join(pair))
            for pair in PAIRS
        },
    )


def _interval(kinds: Sequence[Sequence[Sequence[Scored]]], generation: Generation, resamples: int = 500) -> Estimate:
    """AMG is no mean, so it is computed anew for every resample of the prompts within their kinds. A few prompts of a
    kind tell next to nothing of how prompts differ: no interval then."""
    if any(len(prompts) < FEWEST for prompts in kinds):
        return Estimate(amg(generation), UNMEASURED.low, UNMEASURED.high)
    rng = np.random.default_rng(0)
    values = []
    for _ in range(resamples):
        drawn = [prompts[at] for prompts in kinds for at in rng.integers(len(prompts), size=len(prompts))]
        values.append(amg(_means([one for answers in drawn for one in answers])))
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(amg(generation), float(low), float(high))


def _share_right(prompt: OpenPrompt, answer: Answer, modality: Modality) -> float:
    right = dimensions = 0
    for scene in prompt.expected(modality):
        seen = _perceived(answer, modality, type(scene))
        right += sum(seen[dimension] == value for dimension, value in scene.attributes().items())
        dimensions += len(scene.attributes())
    return right / dimensions


def _agreement(prompt: OpenPrompt, answer: Answer, one: Modality, other: Modality) -> float:
    """0-1. What cannot be told agrees with nothing."""
    kinds: dict[Modality, type[Scene]] = {
        modality: type(prompt.expected(modality)[0]) for modality in (one, other) if modality is not Modality.TEXT
    }
    if one is Modality.TEXT:
        said, shown = _perceived(answer, one, kinds[other]), _perceived(answer, other, kinds[other])
        return sum(shown[name] == said[name] != UNCLEAR for name in shown) / len(shown)
    size = _perceived(answer, one, kinds[one]).get("size", UNCLEAR)
    loudness = _perceived(answer, other, kinds[other])["loudness"]
    return float(LOUDNESS_OF.get(size) == loudness)


def _perceived(answer: Answer, modality: Modality, kind: type[Scene]) -> dict[str, str]:
    if modality is Modality.TEXT:
        return perceive_sentence(answer.text, kind)
    medium = answer.medium(modality)
    return _PERCEIVE[modality](medium) if medium is not None else dict.fromkeys(kind.VALUES, UNCLEAR)


def _presence(scored: Sequence[Scored], slot: Slot) -> tuple[int, int]:
    wanted = [one for one in scored if slot in one.following]
    return sum(slot in {SLOT_OF[modality] for modality in one.chosen} for one in wanted), len(wanted)


def _choices(scored: Sequence[Scored]) -> dict[str, int]:
    """How often each set of modalities was chosen, the most frequent first."""
    names = ["+".join(modality for modality in Modality if modality in one.chosen) or "nothing" for one in scored]
    return {name: names.count(name) for name in sorted(set(names), key=lambda name: (-names.count(name), name))}
