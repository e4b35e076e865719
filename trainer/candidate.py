"""From a round's joined feedback to a candidate: critique model, pairs, optimisation, publishing.

A version that the round has published already is looked for before it is made; a killed round runs again from here.
"""

import logging
import random
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from anyloop.registry import Manifest
from anyloop.sequence import LayoutError, Segment, Sequencer
from protos.anyloop.v1 import types_pb2
from trainer.algorithms.dpo import train_dpo
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.algorithms.ppo import Rollout, train_ppo
from trainer.algorithms.reward_model import train_reward_model
from trainer.batches import TokenSequence
from trainer.clients import Services, gather
from trainer.examples import Example, Examples, Pair, Seed, form_examples
from trainer.fault_points import FaultPoint, reached
from trainer.handover import promote_critic
from trainer.intake import GROUP
from trainer.join import Joined
from trainer.join_store import Round
from trainer.journal import json_safe
from trainer.publish import publish_weights, published_by_round, refuse_used
from trainer.rollouts import sample_rollouts
from trainer.round_context import Report, RoundContext
from trainer.self_improving import SelfImprover, probe_critic
from trainer.trained import Trained

log = logging.getLogger(__name__)

_PROGRESS = {
    "written": FaultPoint.FILES_WRITTEN,
    "synced": FaultPoint.FILES_SYNCED,
    "renamed": FaultPoint.FILES_RENAMED,
}


class CandidateMaker:
    def __init__(self, context: RoundContext) -> None:
        self._context = context

    def make(self, claimed: Round, joined: list[Joined], report: Report) -> Manifest | None:
        """Everything up to the published candidate; None when there is too little to learn from."""
        trainer = self._context.trainer
        policy = self._context.serving("policy")
        sequencer = Sequencer.from_pretrained(self._context.registry.path(policy))
        with self._context.journal.phase(claimed.id, "examples", report.seconds):
            # What critique models of other trainers, or of a state that is lost, have learned from.
            own = published_by_round(self._context.registry, "critique", claimed.key)
            told = {
                name
                for name, version in self._context.registry.used_feedback("critique").items()
                if own is None or version != own.version
            }
            examples = self._examples(joined, sequencer, told)
        reached(FaultPoint.EXAMPLES)
        report.left_out = examples.left_out
        report.metrics |= {"critiques": len(examples.critiques)}

        untold = [one for one in joined if one.feedback.feedback_id not in told]
        held_out = self._learn_critiques(claimed, untold, examples, sequencer, report)
        with self._context.journal.phase(claimed.id, "self_improving", report.seconds):
            pairs = self._self_improve(claimed, policy, sequencer, examples.seeds, held_out, report)
        reached(FaultPoint.PAIRS)
        direct = [pair for pair in examples.pairs if self._fits(pair)]
        improved = [pair for pair in pairs if self._fits(pair)]
        if too_long := len(examples.pairs) + len(pairs) - len(direct) - len(improved):
            report.left_out["too_long"] += too_long
        random.Random(claimed.id).shuffle(improved)
        everything = direct + improved  # people's own are cut last
        chosen = everything[: trainer.max_pairs]
        if beyond := len(everything) - len(chosen):
            report.left_out["beyond_max_pairs"] += beyond
            log.warning("round %d: %d pairs are beyond ANYLOOP_TRAINER_MAX_PAIRS and left out", claimed.id, beyond)
        report.metrics |= {"left_out": dict(report.left_out)}
        report.metrics |= {"pairs_by_origin": dict(Counter(pair.origin for pair in chosen))}
        if len(chosen) < trainer.min_pairs:
            return None
        with self._context.journal.phase(claimed.id, trainer.algorithm, report.seconds):
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

        versions = self._context.announcements.promotions("policy") or [self._context.serving("policy")]
        return form_examples(joined, sequencer, self._context.trainer, encode, versions, told)

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
        codes = self._context.with_services(lambda services: gather(services.encode, parts.values(), "a medium"))
        return {key: found for key, found in zip(parts, codes, strict=True) if found is not None}

    def _fits(self, pair: Pair) -> bool:
        return all(len(sequence) <= self._context.trainer.max_tokens for sequence in pair.sequences)

    # Feedback modelling

    def _learn_critiques(
        self, claimed: Round, joined: Sequence[Joined], examples: Examples, sequencer: Sequencer, report: Report
    ) -> list[Example]:
        """Trains, publishes and promotes the critique model; returns the critiques that only measure it."""
        trainer = self._context.trainer
        fitting = [one for one in examples.critiques if len(one.sequence) <= trainer.max_tokens]
        learn, held_out = split_held_out(fitting, trainer.critique_held_out)
        published = published_by_round(self._context.registry, "critique", claimed.key)
        if published is None and learn and trainer.critique_epochs:
            parent = self._context.serving("critique")
            earlier = self._examples(self._context.store.earlier(claimed.id, 5000), sequencer)
            replay, old_held_out = split_held_out(earlier.critiques, trainer.critique_held_out)
            anchors = [Example(_answered(seed), seed.response_id) for seed in examples.seeds]
            with self._context.journal.phase(claimed.id, "feedback_modelling", report.seconds):
                trained = self._context.world.call(
                    train_critic,
                    self._context.registry.path(parent),
                    mix(learn, replay, anchors, trainer.critique, trainer.seed),
                    held_out + old_held_out[: 2 * len(held_out)],
                    trainer.critique,
                    trainer.optim,
                )
            reached(FaultPoint.CRITIC_TRAINED)
            report.metrics |= trained.metrics
            if trained.metrics["critique_epochs"]:
                published = self._publish("critique", claimed, parent, trained.tensors, joined, report)
        if published is not None:
            report.metrics["critique_version"] = published.version
            report.metrics |= {name: value for name, value in published.metrics.items() if name.startswith("critique_")}
            reached(FaultPoint.CRITIC_PUBLISHED)
            promote_critic(self._context.log, self._context.announcements, published)
            reached(FaultPoint.CRITIC_PROMOTED)
            with self._context.journal.phase(claimed.id, "critique_swap", report.seconds):
                self._context.await_serving("critique", published.version)
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
            improver = SelfImprover(services, sequencer, self._context.trainer, policy, seed=claimed.id)
            report.metrics.update(await probe_critic(improver, held_out, sequencer, self._context.trainer))
            improvement = await improver.pairs(seeds)
            report.metrics["self_improving"] = dict(improvement.counts)
            return improvement.pairs

        return self._context.with_services(improve)

    def _optimise(self, claimed: Round, policy: str, pairs: list[Pair], examples: Examples) -> Trained:
        trainer, world = self._context.trainer, self._context.world
        start = self._context.registry.path(policy)
        base = self._context.registry.manifest(policy).base or policy
        reference = self._context.registry.path(base) if trainer.reference == "base" else start
        imitations = [one for one in examples.imitations if len(one.sequence) <= trainer.max_tokens]
        if trainer.algorithm == "dpo":
            return world.call(train_dpo, start, reference, pairs, imitations, trainer.dpo, trainer.optim)
        reward, reward_metrics = world.call(train_reward_model, start, pairs, trainer.reward, trainer.optim)
        log.info("reward model: %s", reward_metrics)
        prompts = list({seed.prompt: seed for seed in examples.seeds}.values())

        def rollouts(turn: int, weights: dict[str, Tensor] | None) -> list[Rollout]:
            return self._context.with_services(
                lambda services: sample_rollouts(
                    services, self._context.registry, policy, prompts, turn, weights, trainer, claimed.key
                )
            )

        trained = world.call(
            train_ppo,
            start,
            reference,
            reward,
            imitations,
            trainer.ppo,
            trainer.optim,
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
            "algorithm": self._context.trainer.algorithm,
            "settings": self._context.trainer.model_dump(),
            "feedback_ids": used,
            "seconds": dict(report.seconds),
        }
        offsets = {f"{GROUP}/{topic}": parts for topic, parts in claimed.offsets.items()}
        path: Path = self._context.registry.path(parent)
        reached(FaultPoint.PUBLISHING)
        return publish_weights(
            self._context.registry,
            lineage,
            path,
            tensors,
            parent_version=parent,
            offsets=offsets,
            metrics=json_safe(report.metrics | facts),
            check=lambda: refuse_used(self._context.registry, lineage, used),
            progress=lambda step: reached(_PROGRESS[step]),
        )


def _answered(seed: Seed) -> TokenSequence:
    return TokenSequence(seed.prompt, seed.answer)
