"""The weights of one replica: registry versions verified, handed to the model host, proven there by their digest."""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc

from anyloop.registry import CheckpointError, Manifest, Registry
from anyloop.telemetry import metrics
from services.hosts.interface import HostError, ModelHost
from services.rpc.errors import RpcError

logger = logging.getLogger(__name__)

SwapMode = Literal["", "finish", "keep", "recompute"]
LOAD_SECONDS = 120.0
SWITCH_SECONDS = 30.0


@dataclass(frozen=True)
class Resident:
    """One set of weights in the host's memory. `digest` was computed there, from the tensors."""

    version: str
    digest: str
    serving: bool = False
    running_requests: int = 0


@dataclass(frozen=True)
class HostState:
    serving: str = ""
    resident: dict[str, Resident] = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    forward: str = ""
    cache_bytes: int = 0
    reused_prompt_tokens: int = 0


@dataclass(frozen=True)
class Switch:
    weights: Resident
    previous: str
    stall_seconds: float
    load_seconds: float
    longest_step_gap: float = 0.0  # seconds, from the begin of the load to the first step on the new weights
    median_step_gap: float = 0.0  # seconds, before the load


class Weights:
    """Loads, activates and unloads, one change at a time. Model and lineage share their name."""

    def __init__(self, host: ModelHost, lineage: str, registry: Registry) -> None:
        self.lineage = lineage
        self._host = host
        self._registry = registry
        self._changing = asyncio.Lock()

    async def state(self) -> HostState:
        """What the host holds now. Raises HostError."""
        answer = await self._host.call(self.lineage, {"op": "status"}, timeout=SWITCH_SECONDS)
        resident = [
            Resident(str(w["version"]), str(w["digest"]), bool(w["serving"]), int(w["running_requests"]))
            for w in answer["weights"]
        ]
        return HostState(
            serving=str(answer["serving_version"]),
            resident={weights.version: weights for weights in resident},
            running=int(answer["requests_running"]),
            waiting=int(answer["requests_waiting"]),
            forward=str(answer.get("forward", "")),
            cache_bytes=int(answer.get("cache_bytes", 0)),
            reused_prompt_tokens=int(answer.get("reused_prompt_tokens", 0)),
        )

    async def load(self, version: str) -> Resident:
        """Places a version beside the serving one; it answers pinned requests.

        Raises RpcError NOT_FOUND, CheckpointError or HostError; what served goes on serving.
        """
        async with self._changing:
            return (await self._load(version, serves=False))[0]

    async def activate(self, version: str, mode: SwapMode = "", digest: str = "") -> Switch:
        """Makes a version the serving one, loading it where needed. Raises as `load`, and changes nothing then.

        `digest` is what its promotion said of its weights: whoever can write to the registry writes manifests too.
        """
        async with self._changing:
            try:
                weights, loaded = await self._load(version, serves=True, announced=digest)
                request = {"op": "activate", "version": version, "mode": mode}
                answer = await self._host.call(self.lineage, request, timeout=SWITCH_SECONDS)
            except Exception:
                metrics.SWAP_FAILURES.labels(self.lineage).inc()
                raise
        switch = Switch(
            weights,
            previous=str(answer["previous"] or ""),
            stall_seconds=float(answer["stall_seconds"]),
            load_seconds=float(loaded["load_seconds"]),
            longest_step_gap=max(float(part.get("longest_step_gap_seconds", 0.0)) for part in (loaded, answer)),
            median_step_gap=float((loaded | answer).get("median_step_gap_seconds", 0.0)),
        )
        metrics.SWAP_STALL.labels(self.lineage).observe(switch.stall_seconds)
        metrics.set_policy_version(self.lineage, version)
        logger.info(
            "weights switched",
            extra={"model": self.lineage, "version": version, "previous": switch.previous, "digest": weights.digest}
            | {"stall_seconds": switch.stall_seconds, "load_seconds": switch.load_seconds}
            | {"longest_step_gap_seconds": switch.longest_step_gap},
        )
        return switch

    async def unload(self, version: str) -> None:
        """Raises HostError NOT_FOUND, or FAILED_PRECONDITION while the version serves."""
        async with self._changing:
            await self._host.call(self.lineage, {"op": "unload", "version": version}, timeout=SWITCH_SECONDS)

    async def _load(self, version: str, serves: bool, announced: str = "") -> tuple[Resident, dict[str, Any]]:
        """The host's answer beside what is resident now. What is to serve may push an idle staged version out."""
        manifest = await asyncio.to_thread(self._verified, version)
        if announced and announced != manifest.weights_digest:
            raise CheckpointError(
                f"{version} was promoted with weights of digest {announced}, and the registry has "
                f"{manifest.weights_digest}: they were changed since; find out by whom before you promote another"
            )
        request: dict[str, Any] = {
            "op": "load",
            "version": version,
            "path": str(self._registry.path(version).absolute()),
            "digest": manifest.weights_digest,
            "urgent": serves,
        }
        answer = await self._host.call(self.lineage, request, timeout=LOAD_SECONDS)
        digest = str(answer["digest"])
        if digest != manifest.weights_digest:
            raise CheckpointError(
                f"{version}: the tensors in memory have digest {digest}, the manifest says {manifest.weights_digest}"
            )
        return Resident(version, digest), answer

    def _verified(self, version: str) -> Manifest:
        """The manifest, every file hashed again. A name that the registry does not know is NOT_FOUND."""
        try:
            self._registry.path(version)
        except CheckpointError as error:
            raise RpcError(grpc.StatusCode.NOT_FOUND, str(error)) from error
        manifest = self._registry.verify(version)
        if manifest.lineage != self.lineage:
            raise CheckpointError(f"{version} is a {manifest.lineage} checkpoint; this replica serves {self.lineage}")
        return manifest


def is_lasting(error: Exception) -> bool:
    """True when trying the same version again cannot help: the checkpoint is at fault, not the moment.

    What is not found may be there at the next look: the host lost its weights between load and switch, or the folder
    of a version that was just announced is not visible on this machine yet.
    """
    if isinstance(error, HostError):
        return not error.retriable and error.code not in ("DEADLINE_EXCEEDED", "NOT_FOUND", "CANCELLED")
    if isinstance(error, RpcError):
        return error.code is not grpc.StatusCode.NOT_FOUND
    return isinstance(error, CheckpointError)
