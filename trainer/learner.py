"""When to learn: the loop around rounds. One round at a time; a killed learner resumes the round it was in."""

import logging
import threading
import time

from anyloop.log import LogError
from trainer.clients import ServiceError
from trainer.config import TrainerSettings
from trainer.intake import Intake
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal
from trainer.rounds import RoundRunner

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 60.0


def should_start(ready: int, quiet_s: float, waited_s: float, settings: TrainerSettings) -> bool:
    """Enough feedback and the log quiet, or the oldest piece has waited too long."""
    if not ready:
        return False
    return (ready >= settings.min_feedback and quiet_s >= settings.quiet_s) or waited_s >= settings.max_wait_s


class Learner:
    def __init__(
        self, intake: Intake, store: JoinStore, runner: RoundRunner, journal: Journal, settings: TrainerSettings
    ) -> None:
        self._intake, self._store, self._runner = intake, store, runner
        self._journal, self._settings = journal, settings

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set."""
        self._resume(stop)
        last_new = time.monotonic()
        ready, oldest = self._ready()
        while not stop.is_set():
            read, new = self._intake.poll(self._settings.poll_s)
            if new:
                last_new = time.monotonic()
            if read:
                ready, oldest = self._ready()
            self._report_orphans()
            if should_start(ready, time.monotonic() - last_new, time.time() - oldest, self._settings):
                claimed = self._store.begin_round(self._settings.max_per_principal, self._settings.max_feedback)
                if claimed:
                    self._complete(claimed, stop)
                ready, oldest = self._ready()

    def once(self) -> bool:
        """Reads the log to its end and runs one round, or the one left open. False when there was nothing to learn.

        Raises what keeps the services away; the round stays open for the next start.
        """
        stop = None
        if self._resume(stop):
            return True
        self._intake.drain()
        claimed = self._store.begin_round(self._settings.max_per_principal, self._settings.max_feedback)
        if claimed is None:
            return False
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

        A round that fails by its own fault is closed after some attempts. While a service or the log is away it waits,
        for as long as that takes (without `stop`, some attempts): the feedback it holds would be lost with it.
        """
        pause = self._settings.retry_s
        failures = 0
        while stop is None or not stop.is_set():
            try:
                outcome = self._runner.run(claimed)
            except Exception as error:
                failures += 1
                away = _is_away(error)
                # Only failures count, not kills: a round that was interrupted is as good as new.
                attempts = failures if away else self._store.count_attempt(claimed.id)
                log.exception("round %d failed (attempt %d)", claimed.id, attempts)
                self._journal.write("failure", round=claimed.id, attempt=attempts, reason=str(error))
                if attempts >= self._settings.round_attempts and not away:
                    self._store.finish_round(claimed.id, f"failed: {error}")
                    return
                if attempts >= self._settings.round_attempts and stop is None:
                    raise
                (stop or threading.Event()).wait(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)
            else:
                self._store.finish_round(claimed.id, outcome)
                self._store.prune(time.time() - 86400 * self._settings.retention_days)
                return

    def _ready(self) -> tuple[int, float]:
        joined = self._store.ready()
        return len(joined), self._store.oldest_arrival(joined)

    def _report_orphans(self) -> None:
        orphans = self._store.flag_orphans(time.time() - self._settings.orphan_after_s)
        if orphans:
            log.warning("%d feedback events name no known response, such as %s", len(orphans), orphans[0])
            self._journal.write("orphans", count=len(orphans), feedback_ids=orphans[:20])


def _is_away(error: Exception) -> bool:
    """Whether something the round needs could not be reached: no fault of the round's."""
    return (isinstance(error, ServiceError) and error.away) or (isinstance(error, LogError) and error.retriable)
