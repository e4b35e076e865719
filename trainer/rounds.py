"""One round: joined feedback → critique model → pairs → candidate → the gate's word.

Every step that leaves a mark outside (a published version) is looked for before it is done, under the round's key; so a
round can be run again from the start after a kill at any point and has its effects once.
"""

import logging
import time
from collections import Counter
from collections.abc import Sequence

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.registry import Announcements, Registry
from anyloop.telemetry import metrics, tracing
from protos.anyloop.v1 import events_pb2
from trainer.candidate import NO_FIT_ANSWER, TOO_FEW_PAIRS, CandidateMaker
from trainer.checkpointing import forget
from trainer.clients import ServiceError
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.fault_points import FaultPoint, reached
from trainer.handover import APPROVED, PROMOTED, REJECTED, announce_candidate, await_gate, await_rollout, observe_delay
from trainer.join import Joined, event_id
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal
from trainer.publish import UsedElsewhere, published_by_round
from trainer.round_context import Report, RoundContext

log = logging.getLogger(__name__)

_OUTCOMES = {PROMOTED: "promoted", REJECTED: "rejected", APPROVED: "approved"}
NO_CANDIDATE = (TOO_FEW_PAIRS, NO_FIT_ANSWER)  # outcomes of rounds from which no policy was made


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
        announcements = Announcements(event_log)
        self._context = RoundContext(settings, trainer, event_log, registry, store, journal, world, announcements)
        self._maker = CandidateMaker(self._context)

    def run(self, claimed: Round) -> str:
        """Runs or resumes the round and returns its outcome. Raises whatever keeps it from one."""
        while joined := self._context.store.claimed(claimed.id):
            try:
                with tracing.span("round", attributes=self._named(claimed, joined), links=self._traces(joined)) as span:
                    outcome = self._attempt(claimed, joined, Report())
                    span.set({"anyloop.outcome": outcome})
                    return outcome
            except UsedElsewhere as error:
                log.warning("round %d: %s; it goes on with the rest", claimed.id, error)
                if error.lineage == "policy":
                    self._context.store.release(error.feedback_ids)
        return self._close(claimed, Report(), "superseded: other checkpoints used all of its feedback")

    def _attempt(self, claimed: Round, joined: list[Joined], report: Report) -> str:
        last = max(one.feedback.created_unix_ms for one in joined) / 1000
        report.metrics |= {"feedback": len(joined), "last_feedback": last} | _kinds(joined)
        candidate = published_by_round(self._context.registry, "policy", claimed.key)
        if candidate is None:
            made = self._maker.make(claimed, joined, report)
            if isinstance(made, str):
                self._context.store.pairs.drop(claimed.id)
                return self._close(claimed, report, made)
            candidate = made
        reached(FaultPoint.PUBLISHED)
        announce_candidate(self._context.log, self._context.announcements, candidate)
        reached(FaultPoint.ANNOUNCED)
        with self._context.journal.phase(claimed.id, "gate", report.seconds):
            decision = await_gate(self._context.announcements, candidate.version, self._context.trainer.gate_timeout_s)
        reached(FaultPoint.GATE_DECIDED)
        if decision is not None and decision.state == APPROVED:
            with self._context.journal.phase(claimed.id, "rollout", report.seconds):
                decision = self._rolled_out(candidate.version) or decision
            reached(FaultPoint.ROLLOUT_DECIDED)
        if decision is not None and decision.state == PROMOTED:
            with self._context.journal.phase(claimed.id, "policy_swap", report.seconds):
                self._await_policy(candidate.version, joined)
            reached(FaultPoint.POLICY_SWAPPED)
        outcome = "undecided" if decision is None else _OUTCOMES[decision.state]
        report.metrics |= {"candidate": candidate.version, "reason": decision.reason if decision else ""}
        self._prune_registry(candidate.version)
        reached(FaultPoint.REGISTRY_PRUNED)
        return self._close(claimed, report, outcome)

    def _named(self, claimed: Round, joined: Sequence[Joined]) -> dict[str, tracing.Value]:
        return {
            "anyloop.round": claimed.id,
            "anyloop.round.key": claimed.key,
            "anyloop.feedback": len(joined),
            "anyloop.algorithm": self._context.trainer.algorithm,
        }

    def _traces(self, joined: Sequence[Joined]) -> list[str]:
        """Of the answers that are learned from and of what was said of them."""
        if not tracing.on():
            return []
        names = (name for one in joined for name in (event_id(one.response), one.feedback.feedback_id))
        return self._context.store.traces.of(names)

    def forget_training(self) -> None:
        """Removes the checkpoints of trainings under way: of a round that will not be run again."""
        forget(self._context.training_folder)

    def _prune_registry(self, candidate: str) -> None:
        undecided = {event.version for event in self._context.announcements.undecided("policy")}
        keep = self._context.trainer.keep_checkpoints
        in_rollout = self._context.announcements.approved("policy")
        needed = {self._context.serving("policy"), candidate, in_rollout or candidate} | undecided
        self._context.registry.prune("policy", keep, needed)
        self._context.registry.prune("critique", keep, {self._context.serving("critique")})
        self._context.registry.forget(time.time() - 86400 * self._context.trainer.dedupe_days)

    def _close(self, claimed: Round, report: Report, outcome: str) -> str:
        for reason, count in report.left_out.items():
            metrics.TRAINER_LEFT_OUT.labels(reason).inc(count)
        self._context.journal.write(
            "round",
            round=claimed.id,
            outcome=outcome,
            started=claimed.started,
            total_seconds=round(sum(report.seconds.values()), 3),
            seconds=report.seconds,
            metrics=report.metrics,
        )
        forget(self._context.training_folder)
        log.info("round %d: %s", claimed.id, outcome)
        return outcome

    def _rolled_out(self, version: str) -> events_pb2.CheckpointEvent | None:
        return await_rollout(self._context.announcements, version, self._context.trainer.rollout_timeout_s)

    def _await_policy(self, version: str, joined: Sequence[Joined]) -> None:
        """The round is done whether or not the replica answers; the delay is measured only where it serves."""
        try:
            self._context.await_serving("policy", version)
        except ServiceError as error:
            log.warning("%s was promoted, but: %s", version, error)
        else:
            observe_delay(joined)


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
