"""The operations on a program's weights: load, activate, unload, status. They run off the engine's thread."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, get_args

from anyloop.sequence import SequenceLayout
from services.hosts.interface import HostError
from services.policy.engine import Engine, EngineRunner, load_checkpoint
from services.policy.engine.engine import SwapMode

log = logging.getLogger(__name__)


class WeightsOperations:
    def __init__(
        self, runner: EngineRunner, name: str, layout: SequenceLayout, vocabulary: int, mode: SwapMode
    ) -> None:
        """`mode` is for activations that name none."""
        self._runner = runner
        self._name = name
        self._layout = layout
        self._vocabulary = vocabulary
        self._mode = mode

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises HostError FAILED_PRECONDITION; what serves goes on serving."""
        version, path, digest = str(request["version"]), Path(str(request["path"])), str(request.get("digest") or "")
        if not version:
            raise HostError("INVALID_ARGUMENT", "load needs a version")
        resident, like = self._runner.call(
            lambda engine: (engine.weights.get(version), engine.weights.serving or next(iter(engine.weights), None))
        ).result()
        if resident is not None and digest == resident.digest and not resident.retiring:
            return {"digest": resident.digest, "load_seconds": 0.0}
        weights = load_checkpoint(path, version, digest, like=like, layout=self._layout)
        width = weights.model.config.get_text_config().vocab_size
        if width != self._vocabulary:
            raise HostError(
                "FAILED_PRECONDITION",
                f"checkpoint {version} was refused: its vocabulary has {width} tokens, "
                f"this replica's {self._vocabulary}",
            )
        self._runner.call(lambda engine: engine.add_weights(weights)).result()
        log.info("weights loaded", extra={"model": self._name, "version": version, "digest": weights.digest})
        return {"digest": weights.digest, "load_seconds": weights.load_seconds}

    def activate(self, request: dict[str, Any]) -> dict[str, Any]:
        version, mode = str(request["version"]), str(request.get("mode") or self._mode)
        if mode not in get_args(SwapMode):
            raise HostError("INVALID_ARGUMENT", f"mode is one of {', '.join(get_args(SwapMode))}, not {mode!r}")
        previous, stall = self._runner.call(lambda engine: engine.activate(version, mode)).result()  # type: ignore[arg-type]
        log.info(
            "weights activated",
            extra={"model": self._name, "version": version, "previous": previous, "mode": mode, "stall_seconds": stall},
        )
        return {"previous": previous, "stall_seconds": stall}

    def unload(self, request: dict[str, Any]) -> dict[str, Any]:
        version = str(request["version"])
        self._runner.call(lambda engine: engine.weights.unload(version)).result()
        return {}


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
        "requests_waiting": len(engine.waiting),
    }
