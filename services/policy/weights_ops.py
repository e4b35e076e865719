"""The operations on a program's weights: load, activate, unload, status.

They run on one thread, not the engine's, so changes queue: a swap that comes during a swap waits for it. That thread
has the priority of the others: a load that yields the cores would be put aside while it holds the interpreter's lock,
and the steps would wait for both (measured on two busy cores: loads took 10 times as long, and the longest gap grew).
"""

from __future__ import annotations

import functools
import gc
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from anyloop.sequence import SequenceLayout
from services.hosts.interface import HostError
from services.policy.engine import Engine, EngineRunner, Request, load_checkpoint
from services.policy.engine.engine import SwapMode
from services.policy.engine.forward import ForwardOptions

log = logging.getLogger(__name__)

STAGED_IDLE_SECONDS = 60.0  # a staged version that answered nobody for this long may make room for another
_DRAIN_SECONDS = 30.0  # how long a load waits for room while requests end on an old version
_NEXT_STEP_SECONDS = 5.0  # the longest that an activation waits to see the first step on the new weights


class WeightsOperations:
    def __init__(
        self,
        runner: EngineRunner,
        name: str,
        layout: SequenceLayout,
        vocabulary: int,
        mode: SwapMode,
        most_resident: int,
        options: ForwardOptions,
    ) -> None:
        """`mode` is for activations that name none; `most_resident` bounds the versions in memory."""
        self._runner = runner
        self._name = name
        self._layout = layout
        self._vocabulary = vocabulary
        self._mode = mode
        self._most_resident = most_resident
        self._options = options

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Places a version beside the serving one. `urgent`: it is to serve, so any idle staged one may go for it.

        Raises HostError FAILED_PRECONDITION (the checkpoint is at fault), UNAVAILABLE (it cannot be read now) or
        RESOURCE_EXHAUSTED (no room); what serves goes on serving.
        """
        version, path, digest = str(request["version"]), Path(str(request["path"])), str(request.get("digest") or "")
        if not version:
            raise HostError("INVALID_ARGUMENT", "load needs a version")
        resident, like = self._runner.call(
            lambda engine: (engine.weights.get(version), engine.weights.serving or next(iter(engine.weights), None))
        ).result()
        if resident is not None and digest == resident.digest and not resident.retiring:
            return {"digest": resident.digest, "load_seconds": 0.0}
        if resident is None:
            self._make_room(version, 0.0 if request.get("urgent") else STAGED_IDLE_SECONDS)
        window = self._runner.gaps.open()
        try:
            weights = load_checkpoint(path, version, digest, like=like, layout=self._layout, options=self._options)
            width = weights.model.config.get_text_config().vocab_size
            if width != self._vocabulary:
                raise HostError(
                    "FAILED_PRECONDITION",
                    f"checkpoint {version} was refused: its vocabulary has {width} tokens, "
                    f"this replica's {self._vocabulary}",
                )
            self._runner.call(lambda engine: engine.add_weights(weights)).result()
        finally:
            self._runner.gaps.close(window)
        _settle()
        log.info("weights loaded", extra={"model": self._name, "version": version, "digest": weights.digest})
        return {
            "digest": weights.digest,
            "load_seconds": weights.load_seconds,
            "longest_step_gap_seconds": window.longest,
            "median_step_gap_seconds": window.usual,
        }

    def activate(self, request: dict[str, Any]) -> dict[str, Any]:
        """Makes a resident version the serving one. Raises HostError NOT_FOUND."""
        version, mode = str(request["version"]), str(request.get("mode") or self._mode)
        if mode not in get_args(SwapMode):
            raise HostError("INVALID_ARGUMENT", f"mode is one of {', '.join(get_args(SwapMode))}, not {mode!r}")
        window = self._runner.gaps.open()

        def switch(engine: Engine) -> tuple[str, float, bool]:
            previous, stall = engine.activate(version, mode)  # type: ignore[arg-type]
            stepping = bool(engine.running or engine.reading)
            moved = [request for request in engine.reading if request.output] if mode == "recompute" else []
            window.close_when(_first_token_of(moved or [*engine.running, *engine.reading]))
            return previous, stall, stepping

        try:
            previous, stall, stepping = self._runner.call(switch).result()
            if stepping:
                window.wait_closed(_NEXT_STEP_SECONDS)
        finally:
            self._runner.gaps.close(window)
        log.info(
            "weights activated",
            extra={"model": self._name, "version": version, "previous": previous, "mode": mode, "stall_seconds": stall},
        )
        return {
            "previous": previous,
            "stall_seconds": stall,
            "longest_step_gap_seconds": window.longest,
            "median_step_gap_seconds": window.usual,
        }

    def _make_room(self, version: str, idle_seconds: float) -> None:
        """Waits while an old version drains. Raises HostError RESOURCE_EXHAUSTED."""

        def look(engine: Engine) -> tuple[str, HostError | None, bool]:
            try:
                return engine.weights.make_room(self._most_resident, idle_seconds), None, False
            except HostError as error:
                return "", error, engine.weights.draining

        patience = time.monotonic() + _DRAIN_SECONDS
        while True:
            dropped, refusal, draining = self._runner.call(look).result()
            if refusal is None:
                break
            if not draining or time.monotonic() > patience:
                raise refusal
            time.sleep(0.02)
        if dropped:
            log.warning("%s was staged and idle: dropped to make room for %s", dropped, version)

    def unload(self, request: dict[str, Any]) -> dict[str, Any]:
        version = str(request["version"])
        self._runner.call(lambda engine: engine.weights.unload(version)).result()
        return {}


def _first_token_of(requests: list[Request]) -> Callable[[], bool]:
    """Says whether one of them has got another token since now; also true when all have ended."""
    before = [(request, len(request.output)) for request in requests]

    def come() -> bool:
        grown = any(len(request.output) > length for request, length in before)
        return grown or all(request.weights is None for request, _ in before)

    return come


@functools.cache
def _settle() -> None:
    """Once per process, after its first load: what the imports and the model made stays, so full collections need not
    look at it. They did, every few swaps, and no step ran for a quarter of a second meanwhile."""
    gc.collect()
    gc.freeze()


def status_of(engine: Engine) -> dict[str, Any]:
    """What the engine holds and does; called on its thread."""
    serving = engine.weights.serving
    return {
        "serving_version": serving.version if serving is not None else "",
        "weights": [
            {
                "version": weights.version,
                "digest": weights.digest,
                "serving": weights is serving,
                "running_requests": weights.users,
            }
            for weights in engine.weights
        ],
        "requests_running": len(engine.running),
        "requests_waiting": len(engine.reading) + len(engine.waiting),
        "forward": engine.forward_kind,
        "cache_bytes": engine.cache_bytes,
        "reused_prompt_tokens": engine.prefixes.reused_tokens,
    }
