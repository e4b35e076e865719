"""Rollouts from the serving engine: the actor's weights staged beside the serving ones, answers pinned to them."""

import logging
import uuid
from collections.abc import Sequence

from torch import Tensor

from anyloop.registry import Registry
from trainer.algorithms.ppo import Rollout
from trainer.clients import Sample, SampleRequest, ServiceError, Services, gather
from trainer.config import TrainerSettings
from trainer.examples import Seed
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
    """`ppo_rollouts` answers to `prompts` in turn, by `weights`, or by the serving `policy` where they are None.

    The engine scores every answer again, and one whose logged log-probabilities it cannot repeat is left out:
    importance ratios against them would mean nothing. `key` names the round in the staged version. Raises ServiceError.
    """
    begin = turn * settings.ppo_rollouts
    asked = [prompts[i % len(prompts)] for i in range(begin, begin + settings.ppo_rollouts)]
    version = policy
    if weights is not None:
        await clear_rollouts(services, registry, key)
        version = f"{ROLLOUT}{key}-{turn}-{uuid.uuid4().hex[:8]}"
        publish_weights(registry, "policy", registry.path(policy), weights, parent_version=policy, version=version)
        await services.stage(version)
        reached(FaultPoint.ROLLOUTS_STAGED)
    try:
        requests = [
            SampleRequest(seed.prompt, seed.modalities, 1.0, settings.max_answer_tokens, begin + number, version)
            for number, seed in enumerate(asked)
        ]
        samples = await gather(services.sample, requests, "a rollout")
        whole = [
            (request, one)
            for request, one in zip(requests, samples, strict=True)
            if one is not None and one.finished and len(one.tokens) == len(one.logprobs) > 0
        ]
        kept = await _repeatable(services, whole, version)
    finally:
        if weights is not None:
            await clear_rollouts(services, registry, key)
    return [
        Rollout(request.prompt, one.tokens, one.logprobs, request.modalities, request.max_tokens)
        for request, one in kept
    ]


async def _repeatable(
    services: Services, samples: Sequence[tuple[SampleRequest, Sample]], version: str
) -> list[tuple[SampleRequest, Sample]]:
    try:
        scores = await services.score([(request, one.tokens) for request, one in samples], version)
    except ServiceError as error:  # a promotion may have retired the version since; what was logged stands
        log.warning("the rollouts of %s were not scored again: %s", version, error)
        return list(samples)
    kept, largest = [], 0.0
    for (request, one), scored in zip(samples, scores, strict=True):
        gap = max(abs(logged - again) for logged, again in zip(one.logprobs, scored, strict=True))
        largest = max(largest, gap)
        if gap <= LARGEST_GAP:
            kept.append((request, one))
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
