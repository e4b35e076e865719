"""One round: joined feedback → critique model → pairs → candidate → the gate's word.

Every step that leaves a mark outside (a published version) is looked for before it is done, under the round's key; so a
round can be run again from the start after a kill at any point and has its effects once.
"""

import asyncio
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.registry import Manifest, Registry, announce, checkpoint_events, serving_version
from anyloop.sequence import LayoutError, Segment, Sequencer
from anyloop.telemetry import metrics
from protos.anyloop.v1 import events_pb2, types_pb2
from trainer.batches import TokenSequence
from trainer.clients import SampleRequest, ServiceError, Services, gather
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.dpo import train_dpo
from trainer.examples import Example, Examples, Pair, Seed, form_examples
from trainer.feedback_modelling import mix, split_held_out, train_critic
from trainer.intake import GROUP
from trainer.join import Joined
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal, json_safe
from trainer.ppo import Rollout, train_ppo
from trainer.publish import publish_weights, published_by_round
from trainer.reward_model import train_reward_model
from trainer.self_improving import SelfImprover, probe_critic
from trainer.trained import Trained

T = TypeVar("T")

log = logging.getLogger(__name__)

PROMOTED = events_pb2.CheckpointEvent.STATE_PROMOTED
REJECTED = events_pb2.CheckpointEvent.STATE_REJECTED
ROLLOUT = "policy-rollout-"  # weights of an unfinished PPO run, staged for sampling, never announced


@dataclass
class Report:
    """What a round has found out so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)


class RoundRunner:
    def __init__(
        self,
        settings: Settings,
        trainer: TrainerSettings,
        event_log: EventLog,
        registry: Registry,
        store: JoinStore,
        journal: Journal,
        world: World,
    ) -> None:
        self._settings, self._trainer = settings, trainer
        self._log, self._registry, self._store = event_log, registry, store
        self._journal, self._world = journal, world

    def run(self, claimed: Round) -> str:
        """Runs or resumes the round and returns its outcome. Raises whatever keeps it from one."""
        report = Report()
        joined = self._store.claimed(claimed.id)
        report.metrics |= {"feedback": len(joined)} | _kinds(joined)
        candidate = published_by_round(self._registry, "policy", claimed.key)
        if candidate is None:
            candidate = self._learn(claimed, joined, report)
        if candidate is None:
            return self._close(claimed, report, "no candidate: too few pairs")
        self._announce_candidate(candidate)
        with self._journal.phase(claimed.id, "gate", report.seconds):
            decision = self._await_gate(candidate.version)
        if decision is not None and decision.state == PROMOTED:
            self._observe_delay(candidate.version, joined)
        outcome = "undecided" if decision is None else "promoted" if decision.state == PROMOTED else "rejected"
        report.metrics |= {"candidate": candidate.version, "reason": decision.reason if decision else ""}
        self._registry.prune("policy", self._trainer.keep_checkpoints, {self._serving("policy"), candidate.version})
        self._registry.prune("critique", self._trainer.keep_checkpoints, {self._serving("critique")})
        return self._close(claimed, report, outcome)

    def _learn(self, claimed: Round, joined: list[Joined], report: Report) -> Manifest | None:
        """Everything up to the published candidate; None when there is too little to learn from."""
        trainer = self._trainer
        policy = self._serving("policy")
        sequencer = Sequencer.from_pretrained(self._registry.path(policy))
        with self._journal.phase(claimed.id, "examples", report.seconds):
            examples = self._examples(joined, sequencer)
        report.metrics |= {"left_out": dict(examples.left_out), "critiques": len(examples.critiques)}

        held_out = self._learn_critiques(claimed, examples, sequencer, report)
        with self._journal.phase(claimed.id, "self_improving", report.seconds):
            pairs = self._self_improve(claimed, policy, sequencer, examples.seeds, held_out, report)
        direct = [pair for pair in examples.pairs if self._fits(pair)]
        improved = [pair for pair in pairs if self._fits(pair)]
        random.Random(claimed.id).shuffle(improved)
        chosen = (direct + improved)[: trainer.max_pairs]
        report.metrics |= {"pairs_by_origin": dict(Counter(pair.origin for pair in chosen))}
        if len(chosen) < trainer.min_pairs:
            return None
        with self._journal.phase(claimed.id, trainer.algorithm, report.seconds):
            trained = self._optimise(claimed, policy, chosen, examples)
        report.metrics |= trained.metrics
        return self._publish("policy", claimed, policy, trained.tensors, joined, report)

    # Examples

    def _examples(self, joined: Sequence[Joined], sequencer: Sequencer) -> Examples:
        codes = self._encode_refinements(joined)

        def encode(part: types_pb2.ContentPart) -> Segment:
            if part.WhichOneof("part") == "text":
                return str(part.text)
            found = codes.get(part.SerializeToString(deterministic=True))
            if found is None:
                raise LayoutError("this part of a refinement could not be encoded")
            return found

        return form_examples(joined, sequencer, self._trainer, encode, self._promotions())

    def _encode_refinements(self, joined: Sequence[Joined]) -> dict[bytes, Segment]:
        """Codes of every medium in refinements, by the part that holds it."""
        parts = {
            part.SerializeToString(deterministic=True): part
            for one in joined
            for part in one.feedback.feedback.refinement
            if part.WhichOneof("part") in ("media", "inline_media")
        }
        if not parts:
            return {}
        codes = self._with_services(lambda services: gather(services.encode, parts.values(), "a medium"))
        return {key: found for key, found in zip(parts, codes, strict=True) if found is not None}

    def _fits(self, pair: Pair) -> bool:
        return all(len(sequence) <= self._trainer.max_tokens for sequence in pair.sequences)

    # Feedback modelling

    def _learn_critiques(
        self, claimed: Round, examples: Examples, sequencer: Sequencer, report: Report
    ) -> list[Example]:
        """Trains, publishes and promotes the critique model; returns the critiques that only measure it."""
        trainer = self._trainer
        fitting = [one for one in examples.critiques if len(one.sequence) <= trainer.max_tokens]
        learn, held_out = split_held_out(fitting, trainer.critique_held_out)
        published = published_by_round(self._registry, "critique", claimed.key)
        if published is None and learn and trainer.critique_epochs:
            parent = self._serving("critique")
            earlier = self._examples(self._store.earlier(claimed.id, 5000), sequencer)
            replay, old_held_out = split_held_out(earlier.critiques, trainer.critique_held_out)
            anchors = [Example(_answered(seed), seed.response_id) for seed in examples.seeds]
            with self._journal.phase(claimed.id, "feedback_modelling", report.seconds):
                trained = self._world.call(
                    train_critic,
                    self._registry.path(parent),
                    mix(learn, replay, anchors, trainer),
                    held_out + old_held_out[: 2 * len(held_out)],
                    trainer,
                )
            report.metrics |= trained.metrics
            if trained.metrics["critique_epochs"]:
                joined = self._store.claimed(claimed.id)
                published = self._publish("critique", claimed, parent, trained.tensors, joined, report)
        if published is not None:
            report.metrics["critique_version"] = published.version
            report.metrics |= {name: value for name, value in published.metrics.items() if name.startswith("critique_")}
            self._promote_critic(published)
            with self._journal.phase(claimed.id, "critique_swap", report.seconds):
                self._with_services(lambda services: self._await_critic(services, published.version))
        return held_out

    def _promote_critic(self, published: Manifest) -> None:
        promoted = {event.version for _, event in checkpoint_events(self._log, "critique") if event.state == PROMOTED}
        if published.version not in promoted:
            announce(
                self._log,
                "critique",
                published.version,
                "promoted",
                parent=published.parent,
                digest=published.weights_digest,
                reason=f"held-out critique loss {published.metrics.get('critique_loss_after')}",
                decided_by="trainer",
            )

    async def _await_critic(self, services: Services, version: str) -> None:
        deadline = time.monotonic() + self._trainer.swap_timeout_s
        while (await services.status("critique")).serving_version != version:
            if time.monotonic() > deadline:
                raise ServiceError(f"the critique service does not serve {version} in time", retriable=True)
            await asyncio.sleep(0.1)

    # Self-improving and optimisation

    def _self_improve(
        self,
        claimed: Round,
        policy: str,
        sequencer: Sequencer,
        seeds: Sequence[Seed],
        held_out: Sequence[Example],
        report: Report,
    ) -> list[Pair]:
        async def improve(services: Services) -> list[Pair]:
            improver = SelfImprover(services, sequencer, self._trainer, policy, seed=claimed.id)
            report.metrics.update(await probe_critic(improver, held_out, sequencer, self._trainer))
            improvement = await improver.pairs(seeds)
            report.metrics["self_improving"] = dict(improvement.counts)
            return improvement.pairs

        return self._with_services(improve)

    def _optimise(self, claimed: Round, policy: str, pairs: list[Pair], examples: Examples) -> Trained:
        trainer, world = self._trainer, self._world
        start = self._registry.path(policy)
        base = self._registry.manifest(policy).base or policy
        reference = self._registry.path(base) if trainer.reference == "base" else start
        imitations = [one for one in examples.imitations if len(one.sequence) <= trainer.max_tokens]
        if trainer.algorithm == "dpo":
            return world.call(train_dpo, start, reference, pairs, imitations, trainer)
        reward, reward_metrics = world.call(train_reward_model, start, pairs, trainer)
        log.info("reward model: %s", reward_metrics)
        prompts = list({seed.prompt: seed for seed in examples.seeds}.values())
        trained = world.call(
            train_ppo,
            start,
            reference,
            reward,
            imitations,
            trainer,
            local={"rollouts": lambda turn, weights: self._rollouts(claimed, policy, prompts, turn, weights)},
        )
        return replace(trained, metrics=reward_metrics | trained.metrics)

    def _rollouts(
        self, claimed: Round, policy: str, prompts: Sequence[Seed], turn: int, weights: dict[str, Tensor] | None
    ) -> list[Rollout]:
        """Answers of the actor as it is now, sampled by the serving engine from weights staged for that."""
        trainer = self._trainer
        asked = [prompts[i % len(prompts)] for i in range(turn * 7919, turn * 7919 + trainer.ppo_rollouts)]

        async def sample(services: Services) -> list[Rollout]:
            version = policy
            if weights is not None:
                await self._clear_rollouts(services)
                start = self._registry.path(policy)
                version = f"{ROLLOUT}{claimed.key}-{turn}-{uuid.uuid4().hex[:8]}"
                publish_weights(self._registry, "policy", start, weights, parent_version=policy, version=version)
                await services.stage(version)
            requests = [
                SampleRequest(
                    seed.prompt,
                    seed.modalities,
                    1.0,
                    trainer.max_answer_tokens,
                    (claimed.id * 101 + turn) * 1_000_003 + number,
                    version,
                )
                for number, seed in enumerate(asked)
            ]
            samples = await gather(services.sample, requests, "a rollout")
            if weights is not None:
                await self._clear_rollouts(services)
            return [
                Rollout(request.prompt, one.tokens, one.logprobs, request.modalities)
                for request, one in zip(requests, samples, strict=True)
                if one is not None and one.finished and len(one.tokens) == len(one.logprobs)
            ]

        return self._with_services(sample)

    async def _clear_rollouts(self, services: Services) -> None:
        """Unloads and deletes staged rollout weights, those of a killed run included."""
        for version in self._registry.versions("policy"):
            if version.startswith(ROLLOUT):
                await services.unstage(version)
                self._registry.delete(version)

    # Publishing and the gate

    def _publish(
        self,
        lineage: str,
        claimed: Round,
        parent: str,
        tensors: dict[str, Tensor],
        joined: Sequence[Joined],
        report: Report,
    ) -> Manifest:
        facts = {
            "round": claimed.id,
            "round_key": claimed.key,
            "algorithm": self._trainer.algorithm,
            "feedback_ids": sorted(one.feedback.feedback_id for one in joined),
            "seconds": dict(report.seconds),
        }
        offsets = {f"{GROUP}/{topic}": parts for topic, parts in claimed.offsets.items()}
        path: Path = self._registry.path(parent)
        return publish_weights(
            self._registry,
            lineage,
            path,
            tensors,
            parent_version=parent,
            offsets=offsets,
            metrics=json_safe(report.metrics | facts),
        )

    def _announce_candidate(self, candidate: Manifest) -> None:
        if not any(event.version == candidate.version for _, event in checkpoint_events(self._log, "policy")):
            announce(
                self._log,
                "policy",
                candidate.version,
                "candidate",
                parent=candidate.parent,
                digest=candidate.weights_digest,
                decided_by="trainer",
            )

    def _await_gate(self, version: str) -> events_pb2.CheckpointEvent | None:
        """The gate's decision; None when it takes longer than the setting allows."""
        deadline = time.monotonic() + self._trainer.gate_timeout_s
        while True:
            for _, event in checkpoint_events(self._log, "policy"):
                if event.version == version and event.state in (PROMOTED, REJECTED):
                    return event
            if time.monotonic() >= deadline:
                log.warning("the gate has not decided on %s yet", version)
                return None
            time.sleep(0.2)

    def _observe_delay(self, version: str, joined: Sequence[Joined]) -> None:
        """Waits a little for the replica to serve `version`, then measures how old the feedback in it is."""

        async def serving(services: Services) -> bool:
            deadline = time.monotonic() + self._trainer.swap_timeout_s
            while time.monotonic() < deadline:
                if (await services.status("policy")).serving_version == version:
                    return True
                await asyncio.sleep(0.1)
            return False

        try:
            if not self._with_services(serving):
                log.warning("%s was promoted, but the policy service does not serve it yet", version)
                return
        except ServiceError as error:
            log.warning("%s was promoted, but the policy service does not answer: %s", version, error)
            return
        for one in joined:
            metrics.FEEDBACK_TO_SERVING.observe(max(0.0, time.time() - one.feedback.created_unix_ms / 1000))

    def _close(self, claimed: Round, report: Report, outcome: str) -> str:
        self._journal.write(
            "round",
            round=claimed.id,
            outcome=outcome,
            started=claimed.started,
            total_seconds=round(sum(report.seconds.values()), 3),
            seconds=report.seconds,
            metrics=report.metrics,
        )
        log.info("round %d: %s", claimed.id, outcome)
        return outcome

    # What the log and the services say

    def _serving(self, lineage: str) -> str:
        version = serving_version(self._log, lineage)
        return version or self._registry.import_base(lineage, self._settings.model_dir).version

    def _promotions(self) -> list[str]:
        """Policy versions in the order they went into service, the serving one last."""
        promoted = [event.version for _, event in checkpoint_events(self._log, "policy") if event.state == PROMOTED]
        return promoted or [self._serving("policy")]

    def _with_services(self, work: Callable[[Services], Awaitable[T]]) -> T:
        async def run() -> T:
            trainer = self._trainer
            async with Services(self._settings, trainer.concurrency, trainer.request_timeout_s) as services:
                return await work(services)

        return asyncio.run(run())


def _answered(seed: Seed) -> TokenSequence:
    return TokenSequence(seed.prompt, seed.answer)


def _kinds(joined: Sequence[Joined]) -> dict[str, int]:
    """How many feedback events carry each kind."""
    kinds: Counter[str] = Counter()
    for one in joined:
        feedback = one.feedback.feedback
        kinds["feedback_critique"] += bool(feedback.critique.strip())
        kinds["feedback_refinement"] += bool(feedback.refinement)
        kinds["feedback_label"] += feedback.HasField("label")
        kinds["feedback_rating"] += bool(feedback.ratings)
        kinds["feedback_preference"] += bool(feedback.preferred_over)
    return dict(kinds)
