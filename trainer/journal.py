"""`rounds.jsonl`: what every round did, one JSON object per line, for people and for the status command.

Events: `phase` (round, phase, seconds) and `round` (round, outcome, seconds per phase, metrics).
"""

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyloop.telemetry import metrics, tracing

log = logging.getLogger(__name__)


class Journal:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, event: str, **fields: Any) -> None:
        """A line that the disk does not take is lost, with a warning: no round fails for its diary."""
        line = json.dumps({"time": time.time(), "event": event, **json_safe(fields)})
        try:
            with self._path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            log.warning("%s lacks a line about a %s: %s", self._path, event, error)

    @contextmanager
    def phase(self, round_id: int, name: str, seconds: dict[str, float]) -> Iterator[None]:
        """Times a phase of a round: into `seconds`, the metrics, the log and the journal."""
        log.info("round %d: %s", round_id, name)
        began = time.monotonic()
        with tracing.span(f"round: {name}", attributes={"anyloop.round": round_id}):
            yield
        seconds[name] = round(time.monotonic() - began, 3)
        metrics.TRAINER_STEP.labels(name).observe(seconds[name])
        self.write("phase", round=round_id, phase=name, seconds=seconds[name])
        log.info("round %d: %s took %.1f s", round_id, name, seconds[name])


def json_safe(value: Any) -> Any:
    """The same with NaN and infinities as null, which JSON has no words for."""
    if isinstance(value, dict):
        return {str(key): json_safe(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
