"""The gate's loop: for every undecided candidate, stage, evaluate, decide, announce."""

import asyncio
import logging
import threading
import time
from dataclasses import asdict
from typing import Any

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.media.store import MediaStore
from anyloop.registry import Announcements, CheckpointError, Registry, announce
from anyloop.telemetry import metrics, tracing
from protos.anyloop.v1 import events_pb2
from trainer.clients import ServiceError, Services
from trainer.failures import cause_of, is_away
from trainer.fault_points import FaultPoint, reached
from trainer.gate.bootstrap import mean_by_subtask, paired_gain
from trainer.gate.config import GateSettings
from trainer.gate.decision import Decision, decide
from trainer.gate.evaluation import Evaluation, EvaluationCache, evaluate
from trainer.gate.suite import Suite

log = logging.getLogger(__name__)

APPROVED = events_pb2.CheckpointEvent.STATE_APPROVED
REJECTED = events_pb2.CheckpointEvent.STATE_REJECTED
_PASSED = ("promoted", "approved")  # outcomes in a manifest
POLL_S = 0.3
_LONGEST_PAUSE_S = 30.0


class Gate:
    def __init__(
        self,
        settings: Settings,
        gate: GateSettings,
        event_log: EventLog,
        registry: Registry,
        media: MediaStore,
        suite: Suite,
    ) -> None:
        self._settings, self._gate = settings, gate
        self._log, self._registry, self._media, self._suite = event_log, registry, media, suite
        self._announcements = Announcements(event_log)
        self._passes_as = "approved" if gate.promotion == "rollout" else "promoted"
        names = [prompt.id for prompt in suite.prompts()]
        self._cache = EvaluationCache(settings.home / "gate", gate.suite, names, gate)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. A candidate left undecided by a killed gate is taken up again.

        While the log, a service or the disk is away it waits, for as long as that takes.
        """
        pause = self._gate.retry_s
        swept = False
        while not stop.is_set():
            try:
                if not swept:
                    self._sweep()
                    self._say_what_is_left_over()
                    swept = True
                event = self.next_candidate()
                if event is None:
                    stop.wait(POLL_S)
                else:
                    with tracing.span("gate", attributes={"anyloop.version": event.version}) as span:
                        decision = self.decide(event)
                        span.set({"anyloop.promoted": decision.promote, "anyloop.reason": decision.reason})
                pause = self._gate.retry_s
            except Exception as error:
                # A replica that is there but does not do it in time is asked again too.
                if not is_away(error) and not (isinstance(error, ServiceError) and error.retriable):
                    raise
                metrics.TRAINER_FAILURES.labels("service" if isinstance(error, ServiceError) else cause_of(error)).inc()
                log.warning("the gate waits %.1f s: %s", pause, error)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    def next_candidate(self) -> events_pb2.CheckpointEvent | None:
        """The newest policy candidate without a decision; those it has overtaken are rejected."""
        waiting = self._announcements.undecided("policy")
        if not waiting:
            return None
        *overtaken, newest = waiting
        for event in overtaken:
            self._announce(event, Decision(False, f"overtaken by {newest.version}"), {})
        return newest

    def _sweep(self) -> None:
        """Takes from the replica what was rejected by a gate that was killed before it could, and what it has let pass
        that a rollout has rejected, or another approval overtaken: they would fill the replica's memory."""
        states = {event.version: event.state for event in self._announcements.of("policy")}
        in_rollout = self._announcements.approved("policy")
        rejected = {one for one, state in states.items() if state in (APPROVED, REJECTED) and one != in_rollout}
        if rejected:
            asyncio.run(self._unstage(rejected))

    def decide(self, event: events_pb2.CheckpointEvent) -> Decision:
        """Evaluates one candidate and announces the outcome. Raises ServiceError when a service is away.

        Operators decide too, at any time. What they say of this candidate stands, and what they put in service is what
        it is compared with; or what is on its way into service, where rollouts promote.
        """
        began = time.monotonic()
        if self._gate.promotion == "rollout":
            self._sweep()
        try:
            self._registry.verify(event.version)
        except CheckpointError as error:
            return self._announce(event, Decision(False, f"the checkpoint is not whole: {error}"), {})
        while (settled := self._settled(event)) is None:
            serving = self._serving(event)
            decision, report = self._recorded(event, serving) or self._judge(event, serving, began)
            # As late as can be: a promotion that came in since then must not be overridden by an older comparison.
            if "serving" not in report or self._serving(event) == serving:
                return self._announce(event, decision, report)
            log.info("another version was promoted meanwhile: comparing %s again", event.version)
        return self._yield_to(settled)

    def _judge(self, event: events_pb2.CheckpointEvent, serving: str, began: float) -> tuple[Decision, dict[str, Any]]:
        """The candidate against the version in service; the report is empty where they could not be compared."""
        try:
            before, after = asyncio.run(self._evaluate_both(serving, event.version))
        except ServiceError as error:
            if error.retriable:
                raise
            return Decision(False, f"the replica refused it: {error}"), {}
        reached(FaultPoint.GATE_EVALUATED)
        gain = paired_gain(
            after.subtasks,
            before.successes,
            after.successes,
            confidence=self._gate.confidence,
            resamples=self._gate.resamples,
        )
        rates = {one.version: mean_by_subtask(one.subtasks, one.successes) for one in (before, after)}
        unanswered = after.unanswered / max(len(after.prompts) * self._gate.samples, 1)
        decision = decide(gain, rates[before.version], rates[after.version], unanswered, self._gate)
        report = {
            "suite": self._gate.suite,
            "serving": before.version,
            "candidate": after.version,
            "prompts": len(after.prompts),
            "gain": asdict(gain),
            "confidence": self._gate.confidence,
            "subtasks": {
                name: {"before": rates[before.version][name], "after": rates[after.version][name]}
                for name in rates[before.version]
            },
            "before": sum(rates[before.version].values()) / len(rates[before.version]),
            "after": sum(rates[after.version].values()) / len(rates[after.version]),
            "unanswered": after.unanswered,
            "failed": after.failed,
            "seconds": round(time.monotonic() - began, 3),
        }
        return decision, report

    def _serving(self, event: events_pb2.CheckpointEvent) -> str:
        """What the candidate would replace. Where rollouts promote, a version in its rollout is as good as serving, or
        its gain would be lost to the next one that is merely better than what it replaces."""
        announced = self._announcements
        rolled_out = announced.approved("policy") if self._gate.promotion == "rollout" else None
        return rolled_out or announced.serving("policy") or event.parent

    def _say_what_is_left_over(self) -> None:
        left = self._announcements.approved("policy")
        if left and self._gate.promotion == "direct":
            log.warning(
                "%s is approved and waits for a rollout, but this gate promotes directly (ANYLOOP_GATE_PROMOTION) and "
                "compares with what serves: `anyloop checkpoints promote %s`, or the next promotion overtakes it",
                left,
                left,
            )

    def _settled(self, event: events_pb2.CheckpointEvent) -> events_pb2.CheckpointEvent | None:
        """What somebody else has decided on the candidate meanwhile: an operator, or a second gate."""
        return self._announcements.verdict("policy", event.version)

    def _yield_to(self, settled: events_pb2.CheckpointEvent) -> Decision:
        """Somebody else's decision as it stands; nothing is recorded or announced."""
        passed = settled.state != REJECTED
        decision = Decision(passed, f"decided by {settled.decided_by or 'another'}: {settled.reason}")
        state = events_pb2.CheckpointEvent.State.Name(settled.state).removeprefix("STATE_").lower()
        log.info("%s: %s meanwhile, %s", settled.version, state, decision.reason)
        if not passed:
            asyncio.run(self._unstage({settled.version}))
        return decision

    def _recorded(self, event: events_pb2.CheckpointEvent, serving: str) -> tuple[Decision, dict[str, Any]] | None:
        """The decision that a killed gate has written into the manifest and not announced, while it still holds."""
        found = self._registry.manifest(event.version).gate
        if not found or ("serving" in found and found["serving"] != serving):
            return None
        report = {name: value for name, value in found.items() if name not in ("outcome", "reason")}
        return Decision(found.get("outcome") in _PASSED, str(found.get("reason", ""))), report

    async def _evaluate_both(self, serving: str, candidate: str) -> tuple[Evaluation, Evaluation]:
        """The serving version (from the cache where it can be) and the candidate, staged for it."""
        gate = self._gate
        async with Services(self._settings, gate.concurrency, gate.request_timeout_s) as services:
            before = self._cache.get(serving)
            if before is None:
                resident = {weights.version for weights in (await services.status("policy")).weights}
                if serving not in resident:  # promoted a moment ago, and the replica has not switched yet
                    await services.stage(serving)
                before = await evaluate(services, self._suite, self._media, serving, gate)
                if before.unanswered > gate.max_errors * len(before.prompts) * gate.samples:
                    raise ServiceError(f"{serving} left {before.unanswered} prompts unanswered", retriable=True)
                self._cache.put(before)
            staged = await services.stage(candidate)
            promised = self._registry.manifest(candidate).weights_digest
            if staged.digest and staged.digest != promised:
                await services.unstage(candidate)
                raise ServiceError(
                    f"the staged weights have digest {staged.digest}, the manifest says {promised}", retriable=False
                )
            after = self._cache.get(candidate)
            if after is None:
                after = await evaluate(services, self._suite, self._media, candidate, gate)
                self._cache.put(after)
        return before, after

    def _announce(self, event: events_pb2.CheckpointEvent, decision: Decision, report: dict[str, Any]) -> Decision:
        """Into the manifest, the log and the metrics; a rejected candidate leaves the replica.

        Nothing where somebody else has decided: the topic keeps the newest word on a version, so that a rejection after
        a promotion would take away what serves.
        """
        settled = self._settled(event)
        if settled is not None:
            return self._yield_to(settled)
        state = self._passes_as if decision.promote else "rejected"
        try:
            self._registry.record_gate(event.version, {"outcome": state, "reason": decision.reason, **report})
        except CheckpointError as error:
            log.warning("the decision does not stand in the manifest of %s: %s", event.version, error)
        reached(FaultPoint.GATE_RECORDED)
        announce(
            self._log,
            "policy",
            event.version,
            state,
            parent=event.parent,
            digest=event.digest,
            reason=decision.reason,
            decided_by="gate",
            report=report,
            audit_id=f"gate/{event.version}/{state}",
        )
        reached(FaultPoint.GATE_ANNOUNCED)
        metrics.GATE_DECISIONS.labels(state).inc()
        log.info("%s: %s, %s", event.version, state, decision.reason)
        if not decision.promote:
            asyncio.run(self._unstage({event.version}))
        return decision

    async def _unstage(self, versions: set[str]) -> None:
        async with Services(self._settings, attempts=2) as services:
            try:
                for weights in (await services.status("policy")).weights:
                    if weights.version in versions:
                        await services.unstage(weights.version)
            except ServiceError as error:
                log.warning("rejected weights may still be resident: %s", error)
