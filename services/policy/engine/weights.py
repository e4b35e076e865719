"""The resident versions: which one serves, who uses which, and when an old one may go."""

from __future__ import annotations

import time
from collections.abc import Iterator

from services.hosts.interface import HostError
from services.policy.engine.checkpoint import WeightSet


class WeightStore:
    def __init__(self) -> None:
        self._sets: dict[str, WeightSet] = {}
        self.serving: WeightSet | None = None

    def __iter__(self) -> Iterator[WeightSet]:
        return iter(self._sets.values())

    def get(self, version: str) -> WeightSet | None:
        return self._sets.get(version)

    def add(self, weights: WeightSet) -> None:
        """Raises HostError FAILED_PRECONDITION when another set of that version is resident."""
        resident = self._sets.get(weights.version)
        if resident is not None and resident.digest != weights.digest:
            raise HostError(
                "FAILED_PRECONDITION",
                f"{weights.version} is resident with digest {resident.digest}; unload it first",
            )
        if resident is None:
            weights.idle_since = time.monotonic()
            self._sets[weights.version] = weights
        else:
            resident.retiring = False

    @property
    def draining(self) -> bool:
        """A set that serves no more waits for its last request: soon there is room for another."""
        return any(weights.retiring for weights in self)

    def make_room(self, limit: int, idle_seconds: float) -> str:
        """Where `limit` sets are resident, drops the staged one that was idle longest; returns its version, else "".

        A killed trainer or gate leaves what it staged, and nobody else unloads it. What a request was bound to within
        `idle_seconds` stays: its next one may be under way. Raises HostError RESOURCE_EXHAUSTED when all are needed.
        """
        if len(self._sets) < limit:
            return ""
        latest = time.monotonic() - idle_seconds
        idle = [w for w in self if w is not self.serving and not w.users and w.idle_since <= latest]
        if not idle:
            staged = [w.version for w in self if w is not self.serving and not w.retiring]
            way_out = (
                f"unload {' or '.join(staged)}" if staged else "wait until the requests on the old ones have ended"
            )
            raise HostError(
                "RESOURCE_EXHAUSTED",
                f"{len(self._sets)} versions are resident ({', '.join(self._sets)}), the most allowed "
                f"(ANYLOOP_ENGINE_RESIDENT_VERSIONS): {way_out}, then try again",
            )
        dropped = min(idle, key=lambda w: w.idle_since)
        self._retire(dropped)
        return dropped.version

    def activate(self, version: str) -> WeightSet | None:
        """Moves the serving pointer; the previous set leaves when its last request ends. Returns the previous set."""
        weights = self._resident(version)
        weights.retiring = False
        previous, self.serving = self.serving, weights
        if previous is not None and previous is not weights:
            self._retire(previous)
        return previous

    def unload(self, version: str) -> None:
        """Drops a version, after its last request. Raises HostError: not resident, or serving."""
        weights = self._resident(version)
        if weights is self.serving:
            raise HostError("FAILED_PRECONDITION", f"{version} is serving; activate another version first")
        self._retire(weights)

    def acquire(self, version: str) -> WeightSet:
        weights = self._resident(version)
        weights.users += 1
        return weights

    def release(self, weights: WeightSet) -> None:
        weights.users -= 1
        weights.idle_since = time.monotonic()
        if weights.retiring:
            self._retire(weights)

    def _resident(self, version: str) -> WeightSet:
        if version not in self._sets:
            resident = ", ".join(self._sets) or "none"
            raise HostError("NOT_FOUND", f"version {version!r} is not loaded on this replica (resident: {resident})")
        return self._sets[version]

    def _retire(self, weights: WeightSet) -> None:
        weights.retiring = True
        if weights.users == 0 and self._sets.get(weights.version) is weights:
            del self._sets[weights.version]
