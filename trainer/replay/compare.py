"""`python -m trainer.replay.compare BEFORE AFTER --gate FOLDER [--ask]`: two versions on the same prompts.

Reads the evaluations that the gate keeps, answer by answer; with `--ask`, asks the services for those that are missing.
Prints one JSON object. It loads nothing that learns, so it is quick.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anyloop.config import Settings
from anyloop.media.store import MediaStore
from anyloop.telemetry import logs
from trainer.clients import ServiceError, Services
from trainer.gate.bootstrap import Interval, mean_by_subtask, paired_gain
from trainer.gate.config import GateSettings
from trainer.gate.evaluation import Evaluation, EvaluationCache, evaluate
from trainer.gate.suite import Suite, SuiteError, load_suite

log = logging.getLogger(__name__)

USAGE = 2


def main(arguments: list[str] | None = None) -> int:
    """0, 2 for a suite that is not there, 1 when a service stayed away."""
    parser = argparse.ArgumentParser(prog="python -m trainer.replay.compare", description=__doc__)
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--gate", type=Path, required=True, help="folder of the gate's evaluations")
    parser.add_argument("--ask", action="store_true", help="evaluate what is missing, on the services in the settings")
    options = parser.parse_args(arguments)
    settings, gate = Settings(), GateSettings()
    logs.configure("compare", settings.log_level)
    versions = (options.before, options.after)
    try:
        suite = load_suite(gate.suite)
        if not options.ask and not options.gate.exists():
            print(json.dumps({"suite": gate.suite} | compared(versions, lambda version: None, gate)))
            return 0  # nothing was ever evaluated here, and looking creates nothing
        cache = EvaluationCache(options.gate, gate.suite, [prompt.id for prompt in suite.prompts()], gate)
        if options.ask:
            media = MediaStore(settings.effective_media_url)
            asyncio.run(ask(settings, gate, suite, media, cache, [one for one in versions if cache.get(one) is None]))
    except SuiteError as error:
        print(error, file=sys.stderr)
        return USAGE
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"suite": gate.suite} | compared(versions, cache.get, gate)))
    return 0


async def ask(
    settings: Settings,
    gate: GateSettings,
    suite: Suite,
    media: MediaStore,
    cache: EvaluationCache,
    versions: Sequence[str],
) -> None:
    """Evaluates versions, each staged beside the serving one, and keeps the result. Raises ServiceError."""
    async with Services(settings, gate.concurrency, gate.request_timeout_s) as services:
        for version in versions:
            await services.stage(version)
            log.info("evaluating %s", version)
            cache.put(await evaluate(services, suite, media, version, gate))


def compared(versions: tuple[str, str], find: Callable[[str], Evaluation | None], gate: GateSettings) -> dict[str, Any]:
    """The comparison as JSON has it: `missing` names versions without an evaluation; without both there is no gain."""
    found = [find(version) for version in versions]
    facts: dict[str, Any] = {
        "missing": [version for version, one in zip(versions, found, strict=True) if one is None],
        "evaluations": {one.version: _facts(one) for one in found if one is not None},
    }
    before, after = found
    if before is None or after is None:
        return facts
    rates = [mean_by_subtask(one.subtasks, one.successes) for one in (before, after)]

    def gain(subtask: str | None) -> Interval:
        at = [i for i, name in enumerate(before.subtasks) if subtask in (None, name)]
        return paired_gain(
            [before.subtasks[i] for i in at],
            [before.successes[i] for i in at],
            [after.successes[i] for i in at],
            confidence=gate.confidence,
            resamples=gate.resamples,
        )

    return facts | {
        "prompts": len(before.prompts),
        "confidence": gate.confidence,
        "gain": asdict(gain(None)),
        "subtasks": {
            name: {"before": rates[0][name], "after": rates[1][name], "gain": asdict(gain(name))} for name in rates[0]
        },
    }


def _facts(one: Evaluation) -> dict[str, Any]:
    rates = mean_by_subtask(one.subtasks, one.successes)
    return {"mean": sum(rates.values()) / len(rates), "unanswered": one.unanswered, "failed": one.failed}


if __name__ == "__main__":
    raise SystemExit(main())
