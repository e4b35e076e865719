"""When to learn: the loop around rounds. One round at a time; a killed learner resumes the round it was in."""

import logging
import threading
import time

from anyloop.registry import Registry
from anyloop.telemetry import metrics
from trainer.config import TrainerSettings
from trainer.failures import cause_of, is_away
from trainer.fault_points import FaultPoint, reached
from trainer.intake import Intake
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal
from trainer.rounds import NO_CANDIDATE, RoundRunner

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0
_LONGEST_WAIT_FOR_THE_LOG_S = 10.0
_PRUNE_EVERY_S = 3600.0


def should_start(ready: int, quiet_s: float, waited_s: float, settings: TrainerSettings) -> bool:
    """Enough feedback and the log quiet, or the oldest piece has waited too long."""
    if not ready:
        return False
    return (ready >= settings.min_feedback and quiet_s >= settings.quiet_s) or waited_s >= settings.max_wait_s


class Learner:
    def __init__(
        self,
        intake: Intake,
        store: JoinStore,
        runner: RoundRunner,
        registry: Registry,
        journal: Journal,
        settings: TrainerSettings,
    ) -> None:
        self._intake, self._store, self._runner, self._registry = intake, store, runner, registry
        self._journal, self._settings = journal, settings
        self._last_new = time.monotonic()
        self._gave_back = 0  # how much feedback the last round held, where it made too few pairs
        self._gave_back_at = 0.0
        self._pruned = time.monotonic()

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. While the log or the disk is away it waits, for as long as that takes."""
        self._resume(stop)
        pause = self._settings.retry_s
        while not stop.is_set():
            try:
                self._turn(stop)
                pause = self._settings.retry_s
            except Exception as error:
                if not is_away(error):
                    raise
                metrics.TRAINER_FAILURES.labels(cause_of(error)).inc()
                log.warning("the learner waits %.1f s: %s", pause, error)
                stop.wait(pause)
                pause = min(2 * pause, _LONGEST_WAIT_FOR_THE_LOG_S)

    def once(self) -> bool:
        """Reads the log to its end and runs one round, or the one left open. False when there was nothing to learn.

        Raises what keeps log or services away; the round stays open for the next start.
        """
        if self._resume(None):
            return True
        self._intake.drain()
        self._see_to_late_ones()
        return self._learn(None)

    def _turn(self, stop: threading.Event) -> None:
        _, new = self._intake.poll(self._settings.poll_s)
        if new:
            self._last_new = time.monotonic()
        self._see_to_late_ones()
        if time.monotonic() - self._pruned >= _PRUNE_EVERY_S:  # also where no round ever ends
            self._prune()
        ready, oldest = self._store.ready(self._intake.held())
        metrics.TRAINER_FEEDBACK.labels("ready").set(ready)
        metrics.TRAINER_FEEDBACK.labels("waiting").set(self._store.waiting())
        if ready <= self._gave_back:  # the same again makes no more pairs
            return
        waited_s = time.time() - max(oldest, self._gave_back_at)
        if should_start(ready, time.monotonic() - self._last_new, waited_s, self._settings):
            self._learn(stop)

    def _learn(self, stop: threading.Event | None) -> bool:
        settings = self._settings
        claimed = self._store.begin_round(
            settings.max_per_principal,
            settings.max_feedback,
            self._intake.held(),
            self._registry.used_feedback("policy"),
        )
        if claimed is None:
            return False
        reached(FaultPoint.CLAIMED)
        self._complete(claimed, stop)
        return True

    def _resume(self, stop: threading.Event | None) -> bool:
        left = self._store.open_round()
        if left is None:
            return False
        log.info("round %d was left unfinished: resuming it", left.id)
        self._complete(left, stop)
        return True

    def _complete(self, claimed: Round, stop: threading.Event | None) -> None:
        """Runs a round, again after a failure, until it has an outcome. It stays open when `stop` comes in between.

        A round that fails by its own fault is closed after some attempts. While a service, the log or the disk is away
        it waits, for as long as that takes (without `stop`, some attempts): the feedback it holds would be lost with
        it.
        """
        pause = self._settings.retry_s
        failures = 0
        while stop is None or not stop.is_set():
            try:
                self._finish(claimed, self._runner.run(claimed), wait_for_more=stop is not None)
            except Exception as error:
                failures += 1
                away = is_away(error)
                # Only failures count, not kills: a round that was interrupted is as good as new.
                attempts = failures if away else self._store.count_attempt(claimed.id)
                metrics.TRAINER_FAILURES.labels(cause_of(error)).inc()
                log.exception("round %d failed (attempt %d)", claimed.id, attempts)
                self._journal.write("failure", round=claimed.id, attempt=attempts, reason=str(error))
                if attempts >= self._settings.round_attempts and not away:
                    self._store.finish_round(claimed.id, f"failed: {error}")
                    self._runner.forget_training()
                    return
                if attempts >= self._settings.round_attempts and stop is None:
                    raise
                (stop or threading.Event()).wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                reached(FaultPoint.FINISHED)
                self._prune()
                return

    def _finish(self, claimed: Round, outcome: str, *, wait_for_more: bool) -> None:
        """Closes a round. What makes too few pairs, or has no answer to learn from, counts again in a larger round,
        where one is yet to come.

        A round that was no larger than the one before it, though more was ready, cannot grow (`max_feedback`,
        `max_per_principal`): it is closed, or it would stand in the way of what came after it.
        """
        count = self._store.claimed_count(claimed.id)
        if outcome in NO_CANDIDATE and wait_for_more and count > self._gave_back:
            self._store.give_back_round(claimed.id, outcome)
            self._gave_back, self._gave_back_at = count, time.time()
            self._journal.write("gave_back", round=claimed.id, feedback=count)
            log.info("round %d: its %d pieces of feedback wait for more", claimed.id, count)
        else:
            self._store.finish_round(claimed.id, outcome)
            self._gave_back = 0

    def _prune(self) -> None:
        now, day = time.time(), 86400
        self._pruned = time.monotonic()
        try:
            self._store.prune(
                now - day * self._settings.retention_days,
                now - day * self._settings.dedupe_days,
                now - max(day * self._settings.retention_days, 3600 * self._settings.join_window_h),
            )
            self._store.traces.forget(now - day * self._settings.retention_days)
        except Exception as error:
            if not is_away(error):
                raise
            log.warning("old events stay until the next round: %s", error)
        reached(FaultPoint.PRUNED)

    def _see_to_late_ones(self) -> None:
        """Reports feedback without a response, and leaves out what lies beyond the join window as the settings say."""
        settings, now = self._settings, time.time()
        orphans = self._store.flag_orphans(now - settings.orphan_after_s)
        if orphans:
            log.warning("%d feedback events name no known response, such as %s", len(orphans), orphans[0])
            self._journal.write("orphans", count=len(orphans), feedback_ids=orphans[:20])
        patience = 86400 * settings.dedupe_days if settings.late_feedback == "join" else 3600 * settings.join_window_h
        while overdue := self._store.overdue(now - patience, self._intake.held()):
            for one in overdue:
                reason = "late" if one.late else "unjoined"
                if settings.late_feedback == "dead_letter":
                    hours = f"{settings.join_window_h:g} hours"
                    words = f"came more than {hours} after" if one.late else f"found within {hours} no trace of"
                    self._intake.dead_letter(one, f"{reason} feedback: it {words} its response")
                    reached(FaultPoint.LATE_SET_ASIDE)
                    self._store.leave_out([one.event.feedback_id])
                metrics.TRAINER_LEFT_OUT.labels(reason).inc()
            self._store.leave_out(one.event.feedback_id for one in overdue)
            log.warning("%d pieces of feedback beyond the join window are left out", len(overdue))
