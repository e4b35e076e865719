"""From a round's joined feedback to a candidate: critique model, pairs, optimisation, publishing.

A version that the round has published already is looked for before it is made; a killed round runs again from here.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from anyloop.registry import Manifest
from anyloop.sequence import Sequencer
from anyloop.telemetry import metrics
from trainer.algorithms.feedback_modelling import mix, split_held_out, train_critic
from trainer.algorithms.reward_model import TrainedReward, train_reward_model
from trainer.batches import TokenSequence
from trainer.clients import Services
from trainer.example_maker import ExampleMaker
from trainer.examples import Example, Examples, Pair, Seed
from trainer.fault_points import FaultPoint, reached
from trainer.forgetting import watch
from trainer.handover import promote_critic
from trainer.influence import cap_examples, cap_influence
from trainer.intake import GROUP
from trainer.join import Joined
from trainer.join_store import Round
from trainer.journal import json_safe
from trainer.pair_filter import by_reward
from trainer.pair_selection import Selection, fits, select_pairs, unwatched
from trainer.policy_update import PolicyUpdate
from trainer.publish import publish_weights, published_by_round, refuse_used
from trainer.reading import RewardReading
from trainer.replay_buffer import fingerprint
from trainer.round_context import Report, RoundContext
from trainer.self_improving import Improvement, SelfImprover, probe_critic

log = logging.getLogger(__name__)

TOO_FEW_PAIRS = "no candidate: too few pairs"
NO_FIT_ANSWER = "no candidate: no answer that the policy could learn from"

_PROGRESS = {
    "written": FaultPoint.FILES_WRITTEN,
    "synced": FaultPoint.FILES_SYNCED,
    "renamed": FaultPoint.FILES_RENAMED,
}


class CandidateMaker:
    def __init__(self, context: RoundContext) -> None:
        self._context = context

    def make(self, claimed: Round, joined: list[Joined], report: Report) -> Manifest | str:
        """Everything up to the published candidate; why there is none when there is too little to learn from."""
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
            maker = ExampleMaker(self._context, sequencer, joined)
            examples = maker.examples(told)
        critic = (own.parent if own is not None else None) or self._context.serving("critique")
        trust = maker.trust(claimed, examples, critic, report)
        if trust:
            examples = maker.examples(told, trust)
        examples.imitations, _ = cap_examples(examples.imitations, trainer.max_principal_share)
        reached(FaultPoint.EXAMPLES)
        report.left_out = examples.left_out
        report.metrics |= {"critiques": len(examples.critiques)}

        untold = [one for one in joined if one.feedback.feedback_id not in told]
        held_out = self._learn_critiques(claimed, untold, examples, sequencer, report)
        chosen = self._choose(claimed, policy, sequencer, examples, held_out, joined, report)
        reached(FaultPoint.PAIRS)
        if chosen.fresh < trainer.min_pairs:
            return TOO_FEW_PAIRS
        with self._context.journal.phase(claimed.id, trainer.algorithm, report.seconds):
            update = PolicyUpdate(self._context, claimed, policy, self._context.serving("critique"))
            examples.imitations = unwatched(examples.imitations, chosen.watched)
            trained = update.train(chosen.pairs, examples, joined)
        report.left_out.update(update.left_out)
        report.metrics |= {"left_out": dict(report.left_out)}
        if trained is None:
            return NO_FIT_ANSWER
        reached(FaultPoint.TRAINED)
        report.metrics |= trained.metrics | {"left_out": dict(report.left_out)}
        tensors = trained.tensors
        if trainer.forgetting != "off" and chosen.watched:
            with self._context.journal.phase(claimed.id, "forgetting", report.seconds):
                tensors, seen = watch(
                    self._context.registry.path(policy),
                    tensors,
                    chosen.watched,
                    sequencer.layout,
                    trainer.batch_tokens,
                    average=trainer.forgetting == "average",
                )
            report.metrics |= seen
            metrics.TRAINER_FORGOTTEN.inc(len(seen["forgotten"]))
        return self._publish("policy", claimed, policy, tensors, joined, report)

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
            before = ExampleMaker(self._context, sequencer, self._context.store.earlier(claimed.id, 5000))
            earlier = before.examples(trust=before.remembered_trust())
            replay, old_held_out = split_held_out(earlier.critiques, trainer.critique_held_out)
            anchors = [Example(_answered(seed), seed.response_id) for seed in examples.seeds]
            mixed, influence = cap_examples(
                mix(learn, replay, anchors, trainer.critique, trainer.seed), trainer.max_principal_share
            )
            report.metrics |= influence.metrics("critiques")
            metrics.TRAINER_PRINCIPAL_SHARE.labels("critiques").set(influence.largest_after)
            with self._context.journal.phase(claimed.id, "feedback_modelling", report.seconds):
                trained = self._context.world.call(
                    train_critic,
                    self._context.registry.path(parent),
                    mixed,
                    held_out + old_held_out[: 2 * len(held_out)],
                    trainer.critique,
                    trainer.optim,
                    self._context.save_point(claimed, "critique"),
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

    def _choose(
        self,
        claimed: Round,
        policy: str,
        sequencer: Sequencer,
        examples: Examples,
        held_out: Sequence[Example],
        joined: Sequence[Joined],
        report: Report,
    ) -> Selection:
        """The pairs to train on. Those that a killed run of this round had made of the same are taken up again."""
        trainer, buffer = self._context.trainer, self._context.store.pairs
        used = sorted(one.feedback.feedback_id for one in joined)
        made_of = fingerprint(policy, self._context.serving("critique"), used, trainer.model_dump(mode="json"))
        kept = buffer.kept(claimed.id, made_of)
        if kept is None:
            with self._context.journal.phase(claimed.id, "self_improving", report.seconds):
                improvement, seen = self._self_improve(claimed, policy, sequencer, examples.seeds, held_out)
            made = examples.pairs + improvement.pairs
            if trainer.filter == "reward":
                with self._context.journal.phase(claimed.id, "reward_filter", report.seconds):
                    approved, found = self._filter_by_reward(policy, sequencer, improvement, examples.pairs)
                made += approved
                seen |= found
        else:
            made, seen = kept.pairs, kept.metrics
        report.metrics |= seen
        earlier = buffer.earlier(claimed.id, trainer.replay_rounds)
        held_out_then = buffer.held_out(claimed.id, trainer.replay_rounds)
        chosen = select_pairs(made, earlier, sequencer.layout, trainer, claimed.id, held_out_then)
        if beyond := chosen.left_out["beyond_max_pairs"]:
            log.warning("round %d: %d pairs are beyond ANYLOOP_TRAINER_MAX_PAIRS and left out", claimed.id, beyond)
        metrics.TRAINER_PRINCIPAL_SHARE.labels("pairs").set(chosen.metrics["pairs_largest_share"])
        report.left_out += chosen.left_out
        report.metrics |= {"left_out": dict(report.left_out)} | chosen.metrics
        if kept is None and chosen.fresh >= trainer.min_pairs:
            buffer.keep(claimed.id, made_of, made, json_safe(seen), trainer.replay_rounds, chosen.held_out)
        return chosen

    def _self_improve(
        self, claimed: Round, policy: str, sequencer: Sequencer, seeds: Sequence[Seed], held_out: Sequence[Example]
    ) -> tuple[Improvement, dict[str, Any]]:
        async def improve(services: Services) -> tuple[Improvement, dict[str, Any]]:
            improver = SelfImprover(services, sequencer, self._context.trainer, policy, seed=claimed.id)
            probed = await probe_critic(improver, held_out, sequencer, self._context.trainer)
            improvement = await improver.pairs(seeds)
            return improvement, probed | {"self_improving": dict(improvement.counts)}

        return self._context.with_services(improve)

    def _filter_by_reward(
        self, policy: str, sequencer: Sequencer, improvement: Improvement, people: Sequence[Pair]
    ) -> tuple[list[Pair], dict[str, Any]]:
        trainer, world = self._context.trainer, self._context.world
        lineage = trainer.reward.start
        start = self._context.registry.path(policy if lineage == "policy" else self._context.serving(lineage))

        reading = RewardReading(self._context, sequencer, trainer.reward.view)

        def train(pairs: list[Pair]) -> TrainedReward:
            weights = cap_influence(
                [pair.weight for pair in pairs], [pair.voices for pair in pairs], trainer.max_principal_share
            ).weights
            pairs = [replace(pair, weight=weight) for pair, weight in zip(pairs, weights, strict=True)]
            views = reading.pairs(pairs)
            return world.call(train_reward_model, start, pairs, trainer.reward, trainer.optim, None, views)

        refined = [one for one in improvement.refined if fits(one.pair, trainer)]
        people = [pair for pair in people if fits(pair, trainer)]
        approved, seen = by_reward(refined, people, train, reading, trainer.filter_margin, trainer.optim)
        return approved, seen | {"filter_too_long": len(improvement.refined) - len(refined)}

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
