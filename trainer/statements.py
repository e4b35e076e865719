"""What one piece of feedback says of an answer, and how far it is believed. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from protos.anyloop.v1 import events_pb2
from trainer.batches import TokenSequence
from trainer.join import Joined

if TYPE_CHECKING:  # the settings hold the algorithms' configurations, and algorithms take examples
    from trainer.config import TrainerSettings

Kind = Literal["words", "denial", "preference"]
Trust = Mapping[str, float]  # how far a statement is believed, 0-1, by feedback id; 1 where nothing is known against it


@dataclass(frozen=True)
class Statement:
    """A claim about an answer in a form that a critique model can be asked about.

    `words`: `sequences` holds the critique prompt with what was said. `denial` (a label or rating that says wrong, no
    words): the prompt with the words for "right". `preference` (also of a refinement over the answer): the same for
    the better and for the worse answer.
    """

    id: str
    principal: str
    response_id: str
    verdict: bool | None
    kind: Kind
    sequences: tuple[TokenSequence, ...]


def verdict_of(event: events_pb2.FeedbackEvent, settings: TrainerSettings) -> bool | None:
    """Whether a statement says right or wrong; None if neither. The label speaks first, then words, then the rating."""
    feedback = event.feedback
    if feedback.HasField("label"):
        return bool(feedback.label)
    if feedback.critique.strip():
        return settings.says_right(feedback.critique)
    if feedback.ratings:
        ratings = feedback.ratings.values()
        rating = feedback.ratings["overall"] if "overall" in feedback.ratings else sum(ratings) / len(ratings)
        if rating >= settings.right_rating:
            return True
        if rating < settings.wrong_rating:
            return False
    return False if feedback.refinement else None


def critique_words(event: events_pb2.FeedbackEvent, settings: TrainerSettings) -> str:
    """What the critique model should say of this answer; "" when the feedback does not tell."""
    feedback = event.feedback
    if feedback.critique.strip():
        return str(feedback.critique).strip()
    return settings.right_text if verdict_of(event, settings) is True else ""


def trust_in(trust: Trust, one: Joined) -> float:
    return trust.get(one.feedback.feedback_id, 1.0)


def last_words(said: Sequence[Joined], settings: TrainerSettings) -> dict[str, Joined]:
    """Of each voice the last statement that gives a verdict: a person who speaks twice has changed their mind."""
    return {one.feedback.principal: one for one in said if verdict_of(one.feedback, settings) is not None}


def agreed(votes: Iterable[tuple[bool, float]]) -> bool | None:
    """What the most voices say, each by its trust; None on a tie."""
    balance = sum(weight if verdict else -weight for verdict, weight in votes)
    return None if abs(balance) < 1e-9 else balance > 0
