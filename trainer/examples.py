"""What joined feedback teaches: critique examples, preference pairs, answers to imitate, and seeds for self-improving.

Pure: media in refinements come in as codes that somebody encoded before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from anyloop.modality import Modality
from anyloop.sequence import LayoutError, Segment, Sequencer
from protos.anyloop.v1 import events_pb2, types_pb2
from trainer.batches import TokenSequence
from trainer.clients import modalities_of
from trainer.join import Joined
from trainer.statements import Kind, Statement, Trust, agreed, critique_words, last_words, trust_in, verdict_of

if TYPE_CHECKING:  # the settings hold the algorithms' configurations, and algorithms take examples
    from trainer.config import TrainerSettings

Origin = Literal["refinement", "preference", "verdict", "self-improving"]
EncodePart = Callable[[types_pb2.ContentPart], Segment]


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn. `source`: the response id it comes from; `voices`: the principals behind it."""

    sequence: TokenSequence
    source: str
    weight: float = 1.0
    voices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """`chosen` is better than `rejected` as an answer to `prompt`. `voices`: principals who say so; () if none did."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    origin: Origin
    source: str
    weight: float = 1.0
    voices: tuple[str, ...] = ()

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
    voices: tuple[str, ...] = ()  # who gave the critique, or where there is none the verdict


@dataclass
class Examples:
    """All that one round learns from. `left_out` counts, by reason, what was not used."""

    critiques: list[Example] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)
    imitations: list[Example] = field(default_factory=list)
    seeds: list[Seed] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def staleness_weight(behind: int, settings: TrainerSettings) -> float:
    """Weight of an answer whose policy is `behind` versions old; zero beyond the bound where stale ones are dropped."""
    dropped = settings.stale == "drop" and behind > settings.max_versions_behind
    return 0.0 if dropped else settings.staleness_decay**behind


def closed_answer(tokens: Sequence[int], end: int, finished: bool) -> tuple[int, ...]:
    """Output tokens up to the first `end`; a finished answer carries it, one cut by the token limit does not."""
    body = tuple(tokens[: tokens.index(end)]) if end in tokens else tuple(tokens)
    return (*body, end) if finished or end in tokens else body


def form_examples(
    joined: Sequence[Joined],
    sequencer: Sequencer,
    settings: TrainerSettings,
    encode: EncodePart,
    versions: Sequence[str],
    told: Container[str] = (),
    trust: Trust = MappingProxyType({}),
) -> Examples:
    """Turns a round's joined feedback into examples. `versions` are the policy versions, oldest first, serving last.

    `told`: ids of feedback that a critique model has learned from already. `trust`: what is known against statements;
    one that is trusted in nothing is as if it had not been made.
    """
    found = Examples()
    behind = {version: len(versions) - 1 - at for at, version in enumerate(versions)}
    for response, said in _by_response(joined):
        try:
            _ResponseReader(found, response, sequencer, settings, encode, behind, trust).read(said, told)
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


class _ResponseReader:
    """Adds to `found` what was said of one response. Raises LayoutError on tokens that are not this model's."""

    def __init__(
        self,
        found: Examples,
        response: events_pb2.ResponseEvent,
        sequencer: Sequencer,
        settings: TrainerSettings,
        encode: EncodePart,
        behind: dict[str, int],
        trust: Trust,
    ) -> None:
        self._found, self._response, self._sequencer = found, response, sequencer
        self._settings, self._encode, self._trust = settings, encode, trust
        self._prompt = tuple(response.prompt_token_ids)
        self._finished = response.finish_reason == types_pb2.FINISH_REASON_STOP
        self._answer = closed_answer(list(response.output_token_ids), sequencer.layout.end, self._finished)
        self._age = _age(response, behind)
        self._weight = staleness_weight(self._age, settings)

    def read(self, said: list[Joined], told: Container[str]) -> None:
        found, settings = self._found, self._settings
        if not self._prompt or not self._answer or self._response.finish_reason == types_pb2.FINISH_REASON_CANCELLED:
            found.left_out["empty_or_cancelled_answer"] += len(said)
            return
        _check_range(self._prompt + self._answer, self._sequencer)
        self._turns = self._sequencer.parse_prompt(self._prompt)
        self._asked = self._critique_prompt(self._answer)
        if self._age > settings.max_versions_behind:
            found.left_out["stale_downweighted" if self._weight else "stale"] += 1

        believed = [one for one in said if trust_in(self._trust, one) > 0]
        if doubted := len(said) - len(believed):
            found.left_out["unreliable"] += doubted
        last = last_words(believed, settings)
        verdicts = {name: verdict_of(one.feedback, settings) for name, one in last.items()}
        standing = [
            one
            for one in believed
            if verdict_of(one.feedback, settings) in (None, verdicts.get(one.feedback.principal))
        ]
        if taken_back := len(believed) - len(standing):
            found.left_out["taken_back"] += taken_back
        for one in standing:
            self._add_words(one, told)
            self._add_refinement(one)
            self._add_preference(one)
        if self._weight:
            self._add_seed(standing, last)

    def _add_words(self, one: Joined, told: Container[str]) -> None:
        """What the critique model is to learn, and what it may be asked about."""
        verdict = verdict_of(one.feedback, self._settings)
        words = critique_words(one.feedback, self._settings)
        name, trust = one.feedback.principal, trust_in(self._trust, one)
        if words:
            critique = TokenSequence(self._asked, tuple(self._sequencer.answer([words])))
            self._state(one, verdict, "words", critique)
            if one.feedback.feedback_id not in told:
                self._found.critiques.append(Example(critique, self._response.response_id, trust, (name,)))
        elif verdict is False and not one.feedback.feedback.refinement:
            self._state(one, verdict, "denial", self._approval(self._asked))

    def _add_refinement(self, one: Joined) -> None:
        if not one.feedback.feedback.refinement:
            return
        try:
            better = tuple(self._sequencer.answer([self._encode(part) for part in one.feedback.feedback.refinement]))
        except LayoutError:
            self._found.left_out["refinement_that_cannot_be_encoded"] += 1
            return
        trust = trust_in(self._trust, one)
        shown = Example(TokenSequence(self._prompt, better), self._response.response_id, trust, self._voice(one))
        self._found.imitations.append(shown)
        self._prefer(one, better, self._answer, "refinement")

    def _add_preference(self, one: Joined) -> None:
        if one.worse is None:
            return
        if tuple(one.worse.prompt_token_ids) != self._prompt:
            self._found.left_out["preference_between_different_prompts"] += 1
            return
        closed = one.worse.finish_reason == types_pb2.FINISH_REASON_STOP
        worse = closed_answer(list(one.worse.output_token_ids), self._sequencer.layout.end, closed)
        _check_range(worse, self._sequencer)
        if worse:
            self._prefer(one, self._answer, worse, "preference")

    def _prefer(self, one: Joined, better: tuple[int, ...], worse: tuple[int, ...], origin: Origin) -> None:
        if better == worse:
            return
        if not critique_words(one.feedback, self._settings):  # else the words are what it is judged by
            asked = [self._critique_prompt(answer) for answer in (better, worse)]
            self._state(one, None, "preference", *map(self._approval, asked))
        if self._weight:
            weight = self._weight * trust_in(self._trust, one)
            source = self._response.response_id
            self._found.pairs.append(Pair(self._prompt, better, worse, origin, source, weight, self._voice(one)))

    def _add_seed(self, standing: Sequence[Joined], last: dict[str, Joined]) -> None:
        settings = self._settings
        votes = [
            (bool(verdict_of(one.feedback, settings)), trust_in(self._trust, one), name) for name, one in last.items()
        ]
        verdict = agreed((vote, trust) for vote, trust, _ in votes)
        voters = [(trust, name) for vote, trust, name in votes if vote is verdict]
        words = ""
        for one in reversed(standing):
            critique = str(one.feedback.feedback.critique).strip()
            if critique and not settings.says_right(critique):
                words, voters = critique, [(trust_in(self._trust, one), one.feedback.principal)]
                break
        weight = self._weight * (sum(trust for trust, _ in voters) / len(voters) if voters else 1.0)
        voices = tuple(name for _, name in voters)
        source, modalities = self._response.response_id, modalities_of(self._response.modalities)
        if verdict is True and self._finished:
            self._found.imitations.append(Example(TokenSequence(self._prompt, self._answer), source, weight, voices))
        self._found.seeds.append(Seed(source, self._prompt, self._answer, modalities, verdict, words, weight, voices))

    def _critique_prompt(self, answer: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(self._sequencer.critique_prompt(self._turns, self._sequencer.parse(answer)))

    def _approval(self, asked: tuple[int, ...]) -> TokenSequence:
        return TokenSequence(asked, tuple(self._sequencer.answer([self._settings.right_text])))

    def _voice(self, one: Joined) -> tuple[str, ...]:
        return (one.feedback.principal,)

    def _state(self, one: Joined, verdict: bool | None, kind: Kind, *sequences: TokenSequence) -> None:
        event, source = one.feedback, self._response.response_id
        self._found.statements.append(
            Statement(event.feedback_id, event.principal, source, verdict, kind, tuple(sequences))
        )


def _check_range(tokens: Sequence[int], sequencer: Sequencer) -> None:
    """Raises LayoutError on a token that no row of the embedding stands for: it would fail the whole round."""
    if any(not 0 <= token < sequencer.layout.vocabulary_size for token in tokens):
        raise LayoutError("a token outside the vocabulary")


def _age(response: events_pb2.ResponseEvent, behind: dict[str, int]) -> int:
    """Versions between the oldest weights that made the answer and the serving ones; unknown versions are ancient."""
    return max((behind.get(span.version, len(behind)) for span in response.version_spans), default=0)


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
            voices = tuple(dict.fromkeys(seed.voices + chosen.voices))
            pairs.append(Pair(seed.prompt, chosen.answer, seed.answer, "verdict", seed.response_id, weight, voices))
    return pairs
