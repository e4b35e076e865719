"""Rollouts from the serving engine: the actor's weights staged beside the serving ones, answers pinned to them."""

import uuid
from collections.abc import Sequence

from torch import Tensor

from anyloop.registry import Registry
from trainer.clients import SampleRequest, Services, gather
from trainer.config import TrainerSettings
from trainer.examples import Seed
from trainer.ppo import Rollout
from trainer.publish import publish_weights

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

    `key` names the round in the staged version. Raises ServiceError.
    """
    begin = turn * settings.ppo_rollouts
    asked = [prompts[i % len(prompts)] for i in range(begin, begin + settings.ppo_rollouts)]
    version = policy
    if weights is not None:
        await clear_rollouts(services, registry)
        version = f"{ROLLOUT}{key}-{turn}-{uuid.uuid4().hex[:8]}"
        publish_weights(registry, "policy", registry.path(policy), weights, parent_version=policy, version=version)
        await services.stage(version)
    requests = [
        SampleRequest(seed.prompt, seed.modalities, 1.0, settings.max_answer_tokens, begin + number, version)
        for number, seed in enumerate(asked)
    ]
    samples = await gather(services.sample, requests, "a rollout")
    if weights is not None:
        await clear_rollouts(services, registry)
    return [
        Rollout(request.prompt, one.tokens, one.logprobs, request.modalities)
        for request, one in zip(requests, samples, strict=True)
        if one is not None and one.finished and len(one.tokens) == len(one.logprobs)
    ]


async def clear_rollouts(services: Services, registry: Registry) -> None:
    """Unloads and deletes staged rollout weights, those of a killed run included."""
    for version in registry.versions("policy"):
        if version.startswith(ROLLOUT):
            await services.unstage(version)
            registry.delete(version)
