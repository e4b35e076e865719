"""Rollouts from the serving engine: the actor's weights staged beside the serving ones, answers pinned to them."""

import logging
import uuid
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from anyloop.registry import Registry
from trainer.algorithms.rollout import Rollout, Span
from trainer.clients import Sample, SampleRequest, ServiceError, Services, gather
from trainer.config import TrainerSettings
from trainer.examples import Seed, staleness_weight
from trainer.fault_points import FaultPoint, reached
from trainer.publish import publish_weights

log = logging.getLogger(__name__)

LARGEST_GAP = 0.1  # between a logged and a scored log-probability; bfloat16 engines are off by some hundredths
ROLLOUT = "policy-rollout-"  # names of staged versions; they are never announced


async def sample_rollouts(
    services: Services,
    registry: Registry,
    policy: str,
    prompts: Sequence[Seed],
    turn: int,
    weights: dict[str, Tensor] | None,
    settings: TrainerSettings,
    key: str,
) -> list[Rollout]:
    """Answers to `prompts` in turn, by `weights`, or by the serving `policy` where they are None.

    PPO asks `ppo_rollouts` prompts once, GRPO `grpo_prompts` prompts `grpo_group` times each.
    The engine scores every answer again, and one whose logged log-probabilities it cannot repeat is left out:
    importance ratios against them would mean nothing. `key` names the round in the staged version. Raises ServiceError.
    """
    version = policy
    if weights is not None:
        await clear_rollouts(services, registry, key)
        version = f"{ROLLOUT}{key}-{turn}-{uuid.uuid4().hex[:8]}"
        publish_weights(registry, "policy", registry.path(policy), weights, parent_version=policy, version=version)
        await services.stage(version)
        reached(FaultPoint.ROLLOUTS_STAGED)
    try:
        requests = rollout_requests(prompts, turn, settings, version)
        samples = await gather(services.sample, [request for _, request in requests], "a rollout")
        kept = await _repeatable(services, whole_answers(requests, samples), version)
    finally:
        if weights is not None:
            await clear_rollouts(services, registry, key)
    return [as_rollout(group, request, one, settings) for group, request, one in kept]


def rollout_requests(
    prompts: Sequence[Seed], turn: int, settings: TrainerSettings, version: str
) -> list[tuple[int, SampleRequest]]:
    """What the engine is asked in a turn, each with the number of its group. Raises ValueError without prompts."""
    if not prompts:
        raise ValueError("no prompts to sample answers to")
    grouped = settings.algorithm == "grpo"
    count, each = (settings.grpo_prompts, settings.grpo_group) if grouped else (settings.ppo_rollouts, 1)
    requests = []
    for number in range(turn * count, (turn + 1) * count):
        seed = prompts[number % len(prompts)]
        request = SampleRequest(seed.prompt, seed.modalities, 1.0, settings.max_answer_tokens, version=version)
        requests += [(number, replace(request, seed=number * each + i)) for i in range(each)]
    return requests


def whole_answers(
    requests: Sequence[tuple[int, SampleRequest]], samples: Sequence[Sample | None]
) -> list[tuple[int, SampleRequest, Sample]]:
    """Those that ended by themselves, with a log-probability for each token."""
    return [
        (group, request, one)
        for (group, request), one in zip(requests, samples, strict=True)
        if one is not None and one.finished and len(one.tokens) == len(one.logprobs) > 0
    ]


def as_rollout(group: int, request: SampleRequest, sample: Sample, settings: TrainerSettings) -> Rollout:
    """`sample` as an answer of the weights that were asked; a part that others made is a version behind."""
    spans = tuple(
        Span(version, begin, end, behind, staleness_weight(behind, settings))
        for version, begin, end in sample.spans
        for behind in (int(version != request.version),)
    )
    return Rollout(request.prompt, sample.tokens, sample.logprobs, request.modalities, request.max_tokens, spans, group)


def of_turn(logged: Sequence[Rollout], turn: int, turns: int) -> list[Rollout]:
    """A turn's share of the logged answers: each is used in one turn, when the weights have moved on so often."""
    return [
        replace(one, spans=tuple(replace(span, behind=span.behind + turn) for span in one.spans))
        for one in logged[turn::turns]
    ]


async def _repeatable(
    services: Services, samples: Sequence[tuple[int, SampleRequest, Sample]], version: str
) -> list[tuple[int, SampleRequest, Sample]]:
    try:
        scores = await services.score([(request, one.tokens) for _, request, one in samples], version)
    except ServiceError as error:  # a promotion may have retired the version since; what was logged stands
        log.warning("the rollouts of %s were not scored again: %s", version, error)
        return list(samples)
    kept, largest = [], 0.0
    for (group, request, one), scored in zip(samples, scores, strict=True):
        gap = max(abs(logged - again) for logged, again in zip(one.logprobs, scored, strict=True))
        largest = max(largest, gap)
        if gap <= LARGEST_GAP:
            kept.append((group, request, one))
    if len(kept) < len(samples):
        log.warning(
            "%d of %d rollouts of %s are left out: their log-probabilities differ by up to %.3g from the engine's own",
            len(samples) - len(kept),
            len(samples),
            version,
            largest,
        )
    return kept


async def clear_rollouts(services: Services, registry: Registry, key: str) -> None:
    """Unloads and deletes the trainer's staged rollout weights, those of a killed run included."""
    trainer = key.rsplit("-", 1)[0]  # others may be at work on theirs
    for version in registry.versions("policy"):
        if version.startswith(f"{ROLLOUT}{trainer}-"):
            await services.unstage(version)
            registry.delete(version)
