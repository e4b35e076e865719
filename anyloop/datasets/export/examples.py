"""What joined feedback says as examples of three kinds: preferences, critiques, labels. Pure; media stay references."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from anyloop.log.join import Joined
from protos.anyloop.v1 import types_pb2


@dataclass(frozen=True)
class Preference:
    """`origin`: "preference" between two logged answers, or "refinement" of one."""

    prompt: tuple[types_pb2.Message, ...]
    chosen: types_pb2.Message
    rejected: types_pb2.Message
    origin: str
    feedback_id: str
    comparison: str = ""


@dataclass(frozen=True)
class Critique:
    prompt: tuple[types_pb2.Message, ...]
    response: types_pb2.Message
    critique: str
    feedback_id: str


@dataclass(frozen=True)
class Label:
    prompt: tuple[types_pb2.Message, ...]
    response: types_pb2.Message
    good: bool
    feedback_id: str


@dataclass
class Examples:
    """`left_out` counts, by reason, feedback that made no example of a kind that it seemed to carry."""

    preferences: list[Preference] = field(default_factory=list)
    critiques: list[Critique] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def form(joined: Iterable[Joined]) -> Examples:
    """Every statement by itself, as it was made: weighing voices against each other is the trainer's work."""
    found = Examples()
    for one in joined:
        _add(one, found)
    return found


def _add(one: Joined, found: Examples) -> None:
    said, name = one.feedback.feedback, one.feedback.feedback_id
    prompt, answer = tuple(one.response.messages), one.response.response
    if not prompt:
        found.left_out["the prompt was logged as tokens only"] += 1
        return
    if not answer.parts or one.response.finish_reason == types_pb2.FINISH_REASON_CANCELLED:
        found.left_out["the answer is empty or was cancelled"] += 1
        return
    before = len(found.preferences) + len(found.critiques) + len(found.labels)
    if one.worse is not None:
        if _same(one.worse.messages, prompt):
            _prefer(found, Preference(prompt, answer, one.worse.response, "preference", name, said.comparison))
        else:
            found.left_out["a preference between answers to different prompts"] += 1
    if said.refinement:
        better = types_pb2.Message(role=types_pb2.ROLE_ASSISTANT, parts=said.refinement)
        _prefer(found, Preference(prompt, better, answer, "refinement", name))
    if words := said.critique.strip():
        found.critiques.append(Critique(prompt, answer, words, name))
    if said.HasField("label"):
        found.labels.append(Label(prompt, answer, bool(said.label), name))
    made = len(found.preferences) + len(found.critiques) + len(found.labels) - before
    if not made and one.worse is None and not said.refinement:
        found.left_out["ratings or tags only"] += 1


def _prefer(found: Examples, pair: Preference) -> None:
    if not pair.rejected.parts:
        found.left_out["the worse answer is empty"] += 1
    elif _same(pair.chosen.parts, pair.rejected.parts):
        found.left_out["the better answer is the worse one"] += 1
    else:
        found.preferences.append(pair)


def _same(ours: Sequence[object], theirs: Sequence[object]) -> bool:
    return list(ours) == list(theirs)
