"""One round: joined feedback → critique model → pairs → candidate → the gate's word.

Every step that leaves a mark outside (a published version) is looked for before it is done, under the round's key; so a
round can be run again from the start after a kill at any point and has its effects once.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.registry import Announcements, Manifest, Registry
from anyloop.sequence import LayoutError, Segment, Sequencer
from anyloop.telemetry import metrics
from protos.anyloop.v1 import types_pb2
from trainer.batches import TokenSequence
from trainer.clients import ServiceError, Services, gather
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.dpo import train_dpo
from trainer.examples import Example, Examples, Pair, Seed, form_examples
from trainer.fault_points import FaultPoint, reached
from trainer.feedback_modelling import mix, split_held_out, train_critic
from trainer.handover import (
    PROMOTED,
    announce_candidate,
    await_gate,
    await_serving,
    observe_delay,
    promote_critic,
)
from trainer.intake import GROUP
from trainer.join import Joined
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal, json_safe
from trainer.ppo import Rollout, train_ppo
from trainer.publish import UsedElsewhere, publish_weights, published_by_round, refuse_used
from trainer.reward_model import train_reward_model
from trainer.rollouts import sample_rollouts
from trainer.self_improving import SelfImprover, probe_critic
from trainer.trained import Trained

T = TypeVar("T")

log = logging.getLogger(__name__)

_PROGRESS = {
    "written": FaultPoint.FILES_WRITTEN,
    "synced": FaultPoint.FILES_SYNCED,
    "renamed": FaultPoint.FILES_RENAMED,
}


@dataclass
class Report:
    """What a round has found out so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


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
        self._announcements = Announcements(event_log)

    def run(self, claimed: Round) -> str:
        """Runs or resumes the round and returns its outcome. Raises whatever keeps it from one."""
        while joined := self._store.claimed(claimed.id):
            try:
                return self._attempt(claimed, joined, Report())
            except UsedElsewhere as error:
                log.warning("round %d: %s; it goes on with the rest", claimed.id, error)
                if error.lineage == "policy":
                    self._store.release(error.feedback_ids)
        return self._close(claimed, Report(), "superseded: other checkpoints used all of its feedback")

    def _attempt(self, claimed: Round, joined: list[Joined], report: Report) -> str:
        report.metrics |= {"feedback": len(joined)} | _kinds(joined)
        candidate = published_by_round(self._registry, "policy", claimed.key)
        if candidate is None:
            candidate = self._learn(claimed, joined, report)
        if candidate is None:
            return self._close(claimed, report, "no candidate: too few pairs")
        reached(FaultPoint.PUBLISHED)
        announce_candidate(self._log, self._announcements, candidate)
        reached(FaultPoint.ANNOUNCED)
        with self._journal.phase(claimed.id, "gate", report.seconds):
            decision = await_gate(self._announcements, candidate.version, self._trainer.gate_timeout_s)
        reached(FaultPoint.GATE_DECIDED)
        if decision is not None and decision.state == PROMOTED:
            with self._journal.phase(claimed.id, "policy_swap", report.seconds):
                self._await_policy(candidate.version, joined)
            reached(FaultPoint.POLICY_SWAPPED)
        outcome = "undecided" if decision is None else "promoted" if decision.state == PROMOTED else "rejected"
        report.metrics |= {"candidate": candidate.version, "reason": decision.reason if decision else ""}
        self._prune_registry(candidate.version)
        reached(FaultPoint.REGISTRY_PRUNED)
        return self._close(claimed, report, outcome)

    def _prune_registry(self, candidate: str) -> None:
        undecided = {event.version for event in self._announcements.undecided("policy")}
        keep = self._trainer.keep_checkpoints
        self._registry.prune("policy", keep, {self._serving("policy"), candidate} | undecided)
        self._registry.prune("critique", keep, {self._serving("critique")})
        self._registry.forget(time.time() - 86400 * self._trainer.dedupe_days)

    def _learn(self, claimed: Round, joined: list[Joined], report: Report) -> Manifest | None:
        """Everything up to the published candidate; None when there is too little to learn from."""
        trainer = self._trainer
        policy = self._serving("policy")
        sequencer = Sequencer.from_pretrained(self._registry.path(policy))
        with self._journal.phase(claimed.id, "examples", report.seconds):
            # What critique models of other trainers, or of a state that is lost, have learned from.
            own = published_by_round(self._registry, "critique", claimed.key)
            told = {
                name
                for name, version in self._registry.used_feedback("critique").items()
                if own is None or version != own.version
            }
            examples = self._examples(joined, sequencer, told)
        reached(FaultPoint.EXAMPLES)
        report.left_out = examples.left_out
        report.metrics |= {"critiques": len(examples.critiques)}

        untold = [one for one in joined if one.feedback.feedback_id not in told]
        held_out = self._learn_critiques(claimed, untold, examples, sequencer, report)
        with self._journal.phase(claimed.id, "self_improving", report.seconds):
            pairs = self._self_improve(claimed, policy, sequencer, examples.seeds, held_out, report)
        reached(FaultPoint.PAIRS)
        direct = [pair for pair in examples.pairs if self._fits(pair)]
        improved = [pair for pair in pairs if self._fits(pair)]
        if too_long := len(examples.pairs) + len(pairs) - len(direct) - len(improved):
            report.left_out["too_long"] += too_long
        report.metrics |= {"left_out": dict(report.left_out)}
        random.Random(claimed.id).shuffle(improved)
        chosen = (direct + improved)[: trainer.max_pairs]
        report.metrics |= {"pairs_by_origin": dict(Counter(pair.origin for pair in chosen))}
        if len(chosen) < trainer.min_pairs:
            return None
        with self._journal.phase(claimed.id, trainer.algorithm, report.seconds):
            trained = self._optimise(claimed, policy, chosen, examples)
        reached(FaultPoint.TRAINED)
        report.metrics |= trained.metrics
        return self._publish("policy", claimed, policy, trained.tensors, joined, report)

    # Examples

    def _examples(self, joined: Sequence[Joined], sequencer: Sequencer, told: Container[str] = ()) -> Examples:
        codes = self._encode_refinements(joined)

        def encode(part: types_pb2.ContentPart) -> Segment:
            if part.WhichOneof("part") == "text":
                return str(part.text)
            found = codes.get(part.SerializeToString(deterministic=True))
            if found is None:
                raise LayoutError("this part of a refinement could not be encoded")
            return found

        versions = self._announcements.promotions("policy") or [self._serving("policy")]
        return form_examples(joined, sequencer, self._trainer, encode, versions, told)

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
        self, claimed: Round, joined: Sequence[Joined], examples: Examples, sequencer: Sequencer, report: Report
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
            reached(FaultPoint.CRITIC_TRAINED)
            report.metrics |= trained.metrics
            if trained.metrics["critique_epochs"]:
                published = self._publish("critique", claimed, parent, trained.tensors, joined, report)
        if published is not None:
            report.metrics["critique_version"] = published.version
            report.metrics |= {name: value for name, value in published.metrics.items() if name.startswith("critique_")}
            reached(FaultPoint.CRITIC_PUBLISHED)
            promote_critic(self._log, self._announcements, published)
            reached(FaultPoint.CRITIC_PROMOTED)
            with self._journal.phase(claimed.id, "critique_swap", report.seconds):
                self._await_serving("critique", published.version)
            reached(FaultPoint.CRITIC_SWAPPED)
        return held_out

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

        def rollouts(turn: int, weights: dict[str, Tensor] | None) -> list[Rollout]:
            return self._with_services(
                lambda services: sample_rollouts(
                    services, self._registry, policy, prompts, turn, weights, trainer, claimed.key
                )
            )

        trained = world.call(
            train_ppo,
            start,
            reference,
            reward,
            imitations,
            trainer,
            local={"rollouts": rollouts},
        )
        return replace(trained, metrics=reward_metrics | trained.metrics)

    # Publishing

    def _publish(
        self,
        lineage: str,
        claimed: Round,
        parent: str,
        tensors: dict[str, Tensor],
        joined: Sequence[Joined],
        report: Report,
    ) -> Manifest:
        used = sorted(one.feedback.feedback_id for one in joined)
        facts = {
            "round": claimed.id,
            "round_key": claimed.key,
            "algorithm": self._trainer.algorithm,
            "feedback_ids": used,
            "seconds": dict(report.seconds),
        }
        offsets = {f"{GROUP}/{topic}": parts for topic, parts in claimed.offsets.items()}
        path: Path = self._registry.path(parent)
        reached(FaultPoint.PUBLISHING)
        return publish_weights(
            self._registry,
            lineage,
            path,
            tensors,
            parent_version=parent,
            offsets=offsets,
            metrics=json_safe(report.metrics | facts),
            check=lambda: refuse_used(self._registry, lineage, used),
            progress=lambda step: reached(_PROGRESS[step]),
        )

    def _close(self, claimed: Round, report: Report, outcome: str) -> str:
        for reason, count in report.left_out.items():
            metrics.TRAINER_LEFT_OUT.labels(reason).inc(count)
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
        version = self._announcements.serving(lineage)
        return version or self._registry.import_base(lineage, self._settings.model_dir).version

    def _await_serving(self, lineage: str, version: str) -> None:
        timeout = self._trainer.swap_timeout_s
        self._with_services(lambda services: await_serving(services, self._announcements, lineage, version, timeout))

    def _await_policy(self, version: str, joined: Sequence[Joined]) -> None:
        """The round is done whether or not the replica answers; the delay is measured only where it serves."""
        try:
            self._await_serving("policy", version)
        except ServiceError as error:
            log.warning("%s was promoted, but: %s", version, error)
        else:
            observe_delay(joined)

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
