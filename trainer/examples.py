"""What joined feedback teaches: critique examples, preference pairs, answers to imitate, and seeds for self-improving.

Pure: media in refinements come in as codes that somebody encoded before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from anyloop.modality import Modality
from anyloop.sequence import LayoutError, Segment, Sequencer
from protos.anyloop.v1 import events_pb2, types_pb2
from trainer.batches import TokenSequence
from trainer.clients import modalities_of
from trainer.join import Joined

if TYPE_CHECKING:  # the settings hold the algorithms' configurations, and algorithms take examples
    from trainer.config import TrainerSettings

Origin = Literal["refinement", "preference", "verdict", "self-improving"]
EncodePart = Callable[[types_pb2.ContentPart], Segment]


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn. `source` is the response id it comes from."""

    sequence: TokenSequence
    source: str
    weight: float = 1.0


@dataclass(frozen=True)
class Pair:
    """`chosen` is better than `rejected` as an answer to `prompt`."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    origin: Origin
    source: str
    weight: float = 1.0

    @property
    def sequences(self) -> tuple[TokenSequence, TokenSequence]:
        return TokenSequence(self.prompt, self.chosen), TokenSequence(self.prompt, self.rejected)


@dataclass(frozen=True)
class Seed:
    """A logged answer that may be improved. `critique` is what people said is wrong, "" if they gave no words."""

    response_id: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    modalities: tuple[Modality, ...]
    verdict: bool | None  # people's: right, wrong, or silent
    critique: str
    weight: float


@dataclass
class Examples:
    """All that one round learns from. `left_out` counts, by reason, what was not used."""

    critiques: list[Example] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    imitations: list[Example] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def staleness_weight(behind: int, settings: TrainerSettings) -> float:
    """Weight of an answer whose policy is `behind` versions old; zero beyond the bound where stale ones are dropped."""
    dropped = settings.stale == "drop" and behind > settings.max_versions_behind
    return 0.0 if dropped else settings.staleness_decay**behind


def closed_answer(tokens: Sequence[int], end: int, finished: bool) -> tuple[int, ...]:
    """Output tokens up to the first `end`; a finished answer carries it, one cut by the token limit does not."""
    body = tuple(tokens[: tokens.index(end)]) if end in tokens else tuple(tokens)
    return (*body, end) if finished or end in tokens else body


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


def form_examples(
    joined: Sequence[Joined],
    sequencer: Sequencer,
    settings: TrainerSettings,
    encode: EncodePart,
    versions: Sequence[str],
    told: Container[str] = (),
) -> Examples:
    """Turns a round's joined feedback into examples. `versions` are the policy versions, oldest first, serving last.

    `told`: ids of feedback that a critique model has learned from already.
    """
    found = Examples()
    behind = {version: len(versions) - 1 - at for at, version in enumerate(versions)}
    for response, said in _by_response(joined):
        try:
            _add_response(found, response, said, sequencer, settings, encode, behind, told)
        except LayoutError:
            found.left_out["not_a_sequence_of_this_model"] += len(said)
    found.pairs.extend(_verdict_pairs(found.seeds))
    return found


def _by_response(joined: Sequence[Joined]) -> Iterable[tuple[events_pb2.ResponseEvent, list[Joined]]]:
    groups: dict[str, list[Joined]] = {}
    for one in joined:
        groups.setdefault(one.response.response_id, []).append(one)
    for said in groups.values():
        yield said[0].response, said


def _add_response(
    found: Examples,
    response: events_pb2.ResponseEvent,
    said: list[Joined],
    sequencer: Sequencer,
    settings: TrainerSettings,
    encode: EncodePart,
    behind: dict[str, int],
    told: Container[str],
) -> None:
    end = sequencer.layout.end
    prompt = tuple(response.prompt_token_ids)
    finished = response.finish_reason == types_pb2.FINISH_REASON_STOP
    answer = closed_answer(list(response.output_token_ids), end, finished)
    if not prompt or not answer or response.finish_reason == types_pb2.FINISH_REASON_CANCELLED:
        found.left_out["empty_or_cancelled_answer"] += len(said)
        return
    _check_range(prompt + answer, sequencer)
    turns, segments = sequencer.parse_prompt(prompt), sequencer.parse(answer)
    age = _age(response, behind)
    weight = staleness_weight(age, settings)
    if age > settings.max_versions_behind:
        found.left_out["stale_downweighted" if weight else "stale"] += 1

    last_word = _last_verdicts(said, settings)
    standing = [
        one for one in said if verdict_of(one.feedback, settings) in (None, last_word.get(one.feedback.principal))
    ]
    if taken_back := len(said) - len(standing):
        found.left_out["taken_back"] += taken_back
    for one in standing:
        words = critique_words(one.feedback, settings)
        if words and one.feedback.feedback_id not in told:
            asked = tuple(sequencer.critique_prompt(turns, segments))
            critique = TokenSequence(asked, tuple(sequencer.answer([words])))
            found.critiques.append(Example(critique, response.response_id))
        if one.feedback.feedback.refinement:
            try:
                better = tuple(sequencer.answer([encode(part) for part in one.feedback.feedback.refinement]))
            except LayoutError:
                found.left_out["refinement_that_cannot_be_encoded"] += 1
                continue
            found.imitations.append(Example(TokenSequence(prompt, better), response.response_id))
            if weight and better != answer:
                found.pairs.append(Pair(prompt, better, answer, "refinement", response.response_id, weight))
        if one.worse is not None:
            if tuple(one.worse.prompt_token_ids) != prompt:
                found.left_out["preference_between_different_prompts"] += 1
                continue
            closed = one.worse.finish_reason == types_pb2.FINISH_REASON_STOP
            worse = closed_answer(list(one.worse.output_token_ids), end, closed)
            _check_range(worse, sequencer)
            if weight and worse and worse != answer:
                found.pairs.append(Pair(prompt, answer, worse, "preference", response.response_id, weight))

    if weight:
        agreed = _agreed(last_word.values())
        words = next(
            (
                str(one.feedback.feedback.critique).strip()
                for one in reversed(standing)
                if one.feedback.feedback.critique.strip() and not settings.says_right(one.feedback.feedback.critique)
            ),
            "",
        )
        modalities = modalities_of(response.modalities)
        if agreed is True and finished:
            found.imitations.append(Example(TokenSequence(prompt, answer), response.response_id, weight))
        found.seeds.append(Seed(response.response_id, prompt, answer, modalities, agreed, words, weight))


def _check_range(tokens: Sequence[int], sequencer: Sequencer) -> None:
    """Raises LayoutError on a token that no row of the embedding stands for: it would fail the whole round."""
    if any(not 0 <= token < sequencer.layout.vocabulary_size for token in tokens):
        raise LayoutError("a token outside the vocabulary")


def _age(response: events_pb2.ResponseEvent, behind: dict[str, int]) -> int:
    """Versions between the oldest weights that made the answer and the serving ones; unknown versions are ancient."""
    return max((behind.get(span.version, len(behind)) for span in response.version_spans), default=0)


def _last_verdicts(said: Sequence[Joined], settings: TrainerSettings) -> dict[str, bool]:
    """One verdict per voice, its last: a person who speaks twice has changed their mind, not doubled their vote."""
    verdicts: dict[str, bool] = {}
    for one in said:
        verdict = verdict_of(one.feedback, settings)
        if verdict is not None:
            verdicts[one.feedback.principal] = verdict
    return verdicts


def _agreed(verdicts: Iterable[bool]) -> bool | None:
    """What the most voices say; None on a tie."""
    votes = list(verdicts)
    balance = 2 * sum(votes) - len(votes)
    return None if balance == 0 else balance > 0


def _verdict_pairs(seeds: Sequence[Seed]) -> list[Pair]:
    """Right answers against wrong ones of the same prompt, each wrong one once."""
    right: dict[tuple[int, ...], list[Seed]] = {}
    for seed in seeds:
        if seed.verdict is True:
            right.setdefault(seed.prompt, []).append(seed)
    pairs: list[Pair] = []
    for seed in seeds:
        better = right.get(seed.prompt)
        if seed.verdict is False and better:
            chosen = better[len(pairs) % len(better)]
            weight = min(chosen.weight, seed.weight)
            pairs.append(Pair(seed.prompt, chosen.answer, seed.answer, "verdict", seed.response_id, weight))
    return pairs
