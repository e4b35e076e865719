"""`python -m trainer.replay`: the rounds of one replay, in its own home (ANYLOOP_HOME), results into the main registry.

`anyloop replay` starts it beside the replay's services. It may be killed and started again at any time.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from anyloop.config import Settings
from anyloop.registry import Registry
from anyloop.telemetry import logs
from trainer.__main__ import NOTHING_TO_LEARN
from trainer.__main__ import main as train
from trainer.config import TrainerSettings
from trainer.join_store import JoinStore
from trainer.replay.results import Results
from trainer.replay.settings import SettingError, effective, export

log = logging.getLogger(__name__)

USAGE = 2
INTERRUPTED = 130


def main(arguments: list[str] | None = None) -> int:
    """0 when all rounds are done, 2 for a wrong setting, 130 when interrupted, else the trainer's code."""
    parser = argparse.ArgumentParser(prog="python -m trainer.replay", description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="replay.json of the replay")
    parser.add_argument("--registry", type=Path, required=True, help="the registry that gets the results")
    parser.add_argument("--gate", type=Path, required=True, help="the gate's folder beside that registry")
    options = parser.parse_args(arguments)
    private = Settings()
    logs.configure("replay", private.log_level)
    plan = json.loads(options.plan.read_text())
    try:
        settings = effective(
            plan["algorithm"], plan["settings"], feedback=plan["counts"]["usable"], rounds=plan["rounds"]
        )
    except SettingError as error:
        log.error("%s", error)
        return USAGE
    results = Results(plan, private.home, Registry(options.registry), options.gate)
    try:
        return learn(plan, settings, private, results)
    except KeyboardInterrupt:
        return INTERRUPTED


def learn(plan: dict[str, Any], settings: TrainerSettings, private: Settings, results: Results) -> int:
    """Rounds until there are as many as planned or nothing is left to learn from; results after each."""
    export(settings)
    while True:
        for version in results.publish(settings.model_dump()):
            log.info("%s is in the registry", version)
        finished = _finished(private)
        if finished >= plan["rounds"]:
            return 0
        code = train(["--algorithm", plan["algorithm"], "--once"])
        if code:
            return 0 if code == NOTHING_TO_LEARN else code
        if _finished(private) == finished:  # the trainer ends with 0 when it is told to stop
            return INTERRUPTED


def _finished(private: Settings) -> int:
    store = JoinStore(private.home / "trainer" / "state.db")
    try:
        return store.counts()["rounds"]
    finally:
        store.close()


if __name__ == "__main__":
    raise SystemExit(main())
