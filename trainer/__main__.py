"""`python -m trainer`: the learner. Under torchrun, rank 0 learns and the other processes help to train."""

import argparse
import logging
import signal
import threading
from pathlib import Path

from anyloop.config import Settings
from anyloop.log import open_log
from anyloop.registry import Registry
from anyloop.telemetry import metrics
from anyloop.telemetry.process import begin
from anyloop.transport import TransportError, certificate_files
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.failures import is_away
from trainer.intake import GROUP, TOPICS, Intake
from trainer.join_store import JoinStore, StateInUse
from trainer.journal import Journal
from trainer.lag import LagMeter
from trainer.learner import Learner
from trainer.publish import consumed_offsets
from trainer.rounds import RoundRunner

log = logging.getLogger(__name__)

NOTHING_TO_LEARN = 3
STATE_IN_USE = 4
AWAY = 5
BAD_SETTINGS = 6


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, 3 when `--once` found nothing to learn from, 4 when another trainer has this home, 5 when what
    `--once` needs (log, service, disk) stays away, or 6 when its certificates cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    parser.add_argument("--algorithm", choices=("dpo", "ppo", "grpo"), help="overrides ANYLOOP_TRAINER_ALGORITHM")
    parser.add_argument("--once", action="store_true", help="run one round on what the log holds now, then exit")
    # DeepSpeed's launcher says it, beside the environment variable that counts.
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    settings = Settings()
    trainer = TrainerSettings(**({"algorithm": options.algorithm} if options.algorithm else {}))
    begin("trainer", settings)
    try:
        certificate_files(settings)  # better now than in the first round
    except TransportError as error:
        log.error("%s", error)
        return BAD_SETTINGS
    world = World()
    try:
        if world.rank:
            world.serve()
            return 0
        return learn(settings, trainer, world, once=options.once)
    except StateInUse as error:
        log.error("%s", error)
        return STATE_IN_USE
    except Exception as error:
        if not is_away(error):
            raise
        log.error("gave up waiting; start it again when this is mended, nothing is lost: %s", error)
        return AWAY
    finally:
        world.close()


def learn(settings: Settings, trainer: TrainerSettings, world: World, *, once: bool) -> int:
    """Opens log, registry and state, and runs the learner."""
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _interrupt(stop))
    folder: Path = settings.home / "trainer"
    store = JoinStore(folder / "state.db", trainer.late_after_s)
    event_log = open_log(settings.effective_log_url)
    registry = Registry(settings.effective_registry_dir)
    journal = Journal(folder / "rounds.jsonl")
    runner = RoundRunner(settings, trainer, event_log, registry, store, journal, world)
    metrics.expect_learner(TOPICS, trainer.min_feedback)
    stop_metrics = metrics.start_metrics_server(settings.metrics_port, settings.bind)
    intake = Intake(event_log, store, lambda: consumed_offsets(registry, GROUP), 86400 * trainer.dedupe_days)
    learner = Learner(intake, store, runner, registry, journal, trainer)
    try:
        if once:
            return 0 if learner.once() else NOTHING_TO_LEARN
        log.info("the learner waits for feedback", extra=store.counts())
        with LagMeter(lambda: open_log(settings.effective_log_url), GROUP, TOPICS):
            learner.run(stop)
        return 0
    except KeyboardInterrupt:
        log.info("stopped; an open round is resumed at the next start")
        return 0
    finally:
        intake.close()
        store.close()
        event_log.close()
        stop_metrics()


def _interrupt(stop: threading.Event) -> None:
    """Ends the loop between rounds, and a running round at once: it goes on at its last checkpoint."""
    if stop.is_set():
        return
    stop.set()
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
