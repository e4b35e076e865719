"""Self-improving (arXiv 2412.15838, step 2): y ~ policy(x), c ~ critique(x, y), y* ~ policy(x, y, c), so y* ≻ y.

People's own critiques are used where they gave one; the critique model speaks for the rest and for freshly sampled
answers. With the `critique` filter a refinement counts only if the critique model finds it right; what the `reward`
filter keeps is decided in `trainer.pair_filter`.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from anyloop.modality import Modality
from anyloop.sequence import Sequencer
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest, Services, gather
from trainer.config import TrainerSettings
from trainer.examples import Example, Pair, Seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Attempt:
    """An answer on its way to a pair."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    modalities: tuple[Modality, ...]
    source: str
    weight: float
    critique: str = ""
    right: bool = False
    voices: tuple[str, ...] = ()  # the people whose critique it is


@dataclass(frozen=True)
class Refined:
    """A refinement over its answer. `approved`: the critique model's verdict on it, None where it was not asked."""

    pair: Pair
    approved: bool | None


@dataclass
class Improvement:
    """Pairs made, and counts of what became of every answer looked at.

    `refined`: all refinements, whatever the filter says. `pairs` has those that it keeps; none yet of the `reward`
    filter's.
    """

    pairs: list[Pair] = field(default_factory=list)
    refined: list[Refined] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class SelfImprover:
    """One round's use of the serving policy (`version` pinned) and critique model."""

    def __init__(
        self, services: Services, sequencer: Sequencer, settings: TrainerSettings, version: str, seed: int
    ) -> None:
        self._services, self._sequencer, self._settings = services, sequencer, settings
        self._version, self._seed = version, seed

    async def pairs(self, seeds: Sequence[Seed]) -> Improvement:
        """Pairs from logged answers that are not known to be right, and from fresh answers to the same prompts."""
        result = Improvement()
        known = {seed.prompt: seed for seed in seeds if seed.verdict is True}
        attempts = [
            Attempt(
                seed.prompt,
                seed.answer,
                seed.modalities,
                seed.response_id,
                seed.weight,
                seed.critique,
                voices=seed.voices if seed.critique else (),
            )
            for seed in seeds
            # An answer that people call wrong beside one that they call right is a pair already.
            if seed.verdict is not True and not (seed.verdict is False and seed.prompt in known)
        ]
        attempts += await self._fresh(seeds)
        result.counts["answers"] = len(attempts)
        attempts = await self._criticised(attempts)
        wrong = [attempt for attempt in attempts if not attempt.right]
        result.counts["found_right"] = len(attempts) - len(wrong)
        for attempt in wrong:
            if attempt.prompt in known:  # people have said what a right answer is: nothing needs to be refined
                chosen = known[attempt.prompt]
                voices = tuple(dict.fromkeys(attempt.voices + chosen.voices))
                pair = _pair(attempt, chosen.answer, min(attempt.weight, chosen.weight), voices)
                self._keep(result, [pair] if chosen.answer != attempt.answer else [])
        await self._refine([attempt for attempt in wrong if attempt.prompt not in known], result)
        log.info("self-improving: %s", dict(result.counts))
        return result

    async def _fresh(self, seeds: Sequence[Seed]) -> list[Attempt]:
        """New answers of the serving policy to the logged prompts."""
        prompts = list({seed.prompt: seed for seed in seeds}.values()) * self._settings.fresh_per_prompt
        prompts = prompts[: self._settings.max_fresh]
        requests = [
            self._request(seed.prompt, seed.modalities, self._settings.sample_temperature, number)
            for number, seed in enumerate(prompts)
        ]
        samples = await gather(self._services.sample, requests, "a fresh answer")
        return [
            Attempt(seed.prompt, sample.tokens, seed.modalities, seed.response_id, 1.0)
            for seed, sample in zip(prompts, samples, strict=True)
            if sample is not None and sample.finished
        ]

    async def _criticised(self, attempts: list[Attempt]) -> list[Attempt]:
        """Every attempt with a critique: people's, or the critique model's."""
        silent = [attempt for attempt in attempts if not attempt.critique]
        said = await self.ask([(attempt.prompt, attempt.answer) for attempt in silent])
        spoken = [
            replace(attempt, critique=words, right=self._settings.says_right(words))
            for attempt, words in zip(silent, said, strict=True)
            if words
        ]
        return [attempt for attempt in attempts if attempt.critique] + spoken

    async def ask(self, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[str]:
        """What the serving critique model says of (prompt, answer) tokens; "" where it says nothing."""
        parse = self._sequencer.parse
        return await self.ask_prompts(
            [
                tuple(self._sequencer.critique_prompt(self._sequencer.parse_prompt(prompt), parse(answer)))
                for prompt, answer in answers
            ]
        )

    async def ask_prompts(self, prompts: Sequence[tuple[int, ...]]) -> list[str]:
        """As `ask`, of rendered critique prompts."""
        requests = [
            SampleRequest(
                prompt,
                temperature=self._settings.critique_temperature,
                max_tokens=self._settings.max_critique_tokens,
                seed=self._seed * 1_000_003 + number,
            )
            for number, prompt in enumerate(prompts)
        ]
        return [said or "" for said in await gather(self._services.critique, requests, "a critique")]

    async def _refine(self, attempts: list[Attempt], result: Improvement) -> None:
        requests = []
        for number, attempt in enumerate(attempts):
            turns = self._sequencer.parse_prompt(attempt.prompt)
            segments = self._sequencer.parse(attempt.answer)
            prompt = tuple(self._sequencer.refine_prompt(turns, segments, attempt.critique))
            requests.append(
                self._request(prompt, attempt.modalities, self._settings.refine_temperature, 500_000 + number)
            )
        samples = await gather(self._services.sample, requests, "a refinement")
        refined = []
        for attempt, sample in zip(attempts, samples, strict=True):
            if sample is None or not sample.finished:
                result.counts["unfinished"] += 1
            elif sample.tokens == attempt.answer:
                result.counts["unchanged"] += 1
            else:
                refined.append((attempt, sample.tokens))
        result.counts["refined"] = len(refined)
        approved: list[bool | None] = [None] * len(refined)
        if self._settings.filter != "none":
            said = await self.ask([(attempt.prompt, tokens) for attempt, tokens in refined])
            approved = [self._settings.says_right(words) for words in said]
            result.counts["approved"] = sum(one is True for one in approved)
        for (attempt, tokens), verdict in zip(refined, approved, strict=True):
            result.refined.append(Refined(_pair(attempt, tokens, attempt.weight, attempt.voices), verdict))
        if self._settings.filter != "reward":
            kept = [one.pair for one in result.refined if one.approved is not False]
            result.counts["filtered_out"] = len(refined) - len(kept)
            self._keep(result, kept)

    def _keep(self, result: Improvement, pairs: Sequence[Pair]) -> None:
        result.pairs.extend(pairs)
        result.counts["pairs"] += len(pairs)

    def _request(
        self, prompt: tuple[int, ...], modalities: tuple[Modality, ...], temperature: float, number: int
    ) -> SampleRequest:
        return SampleRequest(
            prompt,
            modalities,
            temperature,
            self._settings.max_answer_tokens,
            seed=self._seed * 1_000_003 + number,
            version=self._version,
        )


async def probe_critic(
    improver: SelfImprover, examples: Sequence[Example], sequencer: Sequencer, settings: TrainerSettings
) -> dict[str, float]:
    """How the serving critique model does on held-out critiques: agreement on right or wrong, and word for word."""
    chosen = list(examples)[: settings.critique_probe]
    if not chosen:
        return {}
    said = await improver.ask_prompts([example.sequence.prompt for example in chosen])
    people = [_answer_text(example.sequence, sequencer) for example in chosen]
    agree = [settings.says_right(a) == settings.says_right(b) for a, b in zip(said, people, strict=True)]
    exact = [a.strip().lower() == b.strip().lower() for a, b in zip(said, people, strict=True)]
    return {
        "critique_probed": len(chosen),
        "critique_right_agreement": sum(agree) / len(agree),
        "critique_exact": sum(exact) / len(exact),
    }


def _pair(attempt: Attempt, chosen: tuple[int, ...], weight: float, voices: tuple[str, ...]) -> Pair:
    return Pair(attempt.prompt, chosen, attempt.answer, "self-improving", attempt.source, weight, voices)


def _answer_text(sequence: TokenSequence, sequencer: Sequencer) -> str:
    return "".join(segment for segment in sequencer.parse(sequence.answer) if isinstance(segment, str))
