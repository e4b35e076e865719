"""One rollout of one version, as the status keeps it: what a controller that takes over needs to go on."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from k8s import timestamps

PROGRESSING = "Progressing"
PROMOTING = "Promoting"
ROLLING_BACK = "RollingBack"

COMPLETED = "Completed"
ROLLED_BACK = "RolledBack"
SUPERSEDED = "Superseded"
ABORTED = "Aborted"

_LONGEST_REASON = 500  # of each rollout of the history


@dataclass(frozen=True)
class Run:
    """Times are Unix seconds. A frozen value: each look makes the next one of it."""

    id: str
    version: str
    stable: str
    started: float
    progress: float  # the last time that it came forward
    state: str = PROGRESSING
    step: int = 0
    steps: int = 1
    step_began: float = 0.0  # unlike `reached` no pause moves it: what was measured since belongs to the step
    reached: float | None = None  # when the step's replicas served the target
    short: float | None = None  # since when fewer replicas serve it than had in this step
    paused: float | None = None
    absent: float | None = None  # since when no replica is ready
    peak: int = 0  # most replicas that served the target
    failures: int = 0
    lost: tuple[str, ...] = ()  # replicas that crashed on the target and are not back
    log_offset: int | None = None  # the lineage's newest word when it began; None: a controller before did not say
    outcome: str = ""  # of a rollback: what it is called when it has ended
    reason: str = ""

    @classmethod
    def begin(cls, version: str, stable: str, steps: int, log_offset: int, now: float) -> "Run":
        return cls(
            id=f"{version}@{int(now * 1000)}",
            version=version,
            stable=stable,
            started=now,
            progress=now,
            steps=steps,
            step_began=now,
            log_offset=log_offset,
        )

    def at_step(self, step: int, now: float) -> "Run":
        return replace(self, step=step, step_began=now, reached=None, short=None, progress=now)

    def rolling_back(self, outcome: str, reason: str, now: float) -> "Run":
        return replace(self, state=ROLLING_BACK, outcome=outcome, reason=reason, progress=now, paused=None)

    def resumed(self, now: float) -> "Run":
        """The time in which it was paused counts for nothing."""
        return replace(self._later(self.paused, now), paused=None)

    def looked_at(self, usable: int, unready: Collection[str], crashed: Collection[str], now: float) -> "Run":
        """With who `crashed` on the target since the last look. While no replica is usable its clocks stand still."""
        lost = tuple(sorted({*self.lost, *crashed}.intersection(unready)))
        if not usable:
            return replace(self, lost=lost, absent=now if self.absent is None else self.absent)
        return replace(self._later(self.absent, now), lost=lost, absent=None)

    def _later(self, since: float | None, now: float) -> "Run":
        """Its clocks, as if they had stood still since then."""
        if since is None:
            return self
        away = now - since
        reached = min(self.reached + away, now) if self.reached is not None else None
        short = min(self.short + away, now) if self.short is not None else None
        return replace(self, progress=min(self.progress + away, now), reached=reached, short=short)

    def to_status(self) -> dict[str, Any]:
        found = {
            "id": self.id,
            "version": self.version,
            "stable": self.stable,
            "state": self.state,
            "startedAt": timestamps.written(self.started),
            "progressAt": timestamps.written(self.progress),
            "step": self.step,
            "steps": self.steps,
            "stepStartedAt": timestamps.written(self.step_began),
            "stepReachedAt": timestamps.written(self.reached) if self.reached is not None else None,
            "shortSince": timestamps.written(self.short) if self.short is not None else None,
            "pausedAt": timestamps.written(self.paused) if self.paused is not None else None,
            "absentSince": timestamps.written(self.absent) if self.absent is not None else None,
            "peak": self.peak,
            "failures": self.failures,
            "lost": list(self.lost) or None,
            "logOffset": self.log_offset,
            "outcome": self.outcome or None,
            "reason": self.reason or None,
        }
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "Run":
        started = timestamps.read(status["startedAt"]) or 0.0
        return cls(
            id=status["id"],
            version=status["version"],
            stable=status["stable"],
            started=started,
            progress=timestamps.read(status.get("progressAt")) or started,
            state=status["state"],
            step=status.get("step", 0),
            steps=status.get("steps", 1),
            step_began=timestamps.read(status.get("stepStartedAt")) or started,
            reached=timestamps.read(status.get("stepReachedAt")),
            short=timestamps.read(status.get("shortSince")),
            paused=timestamps.read(status.get("pausedAt")),
            absent=timestamps.read(status.get("absentSince")),
            peak=status.get("peak", 0),
            failures=status.get("failures", 0),
            lost=tuple(status.get("lost", ())),
            log_offset=status.get("logOffset"),
            outcome=status.get("outcome", ""),
            reason=status.get("reason", ""),
        )


@dataclass(frozen=True)
class Ended:
    """A rollout of the history."""

    id: str
    version: str
    outcome: str
    stable: str = ""
    reason: str = ""
    started: float | None = None
    ended: float | None = None
    peak: int = 0

    @classmethod
    def of(cls, run: Run, outcome: str, reason: str, now: float) -> "Ended":
        return cls(run.id, run.version, outcome, run.stable, reason[:_LONGEST_REASON], run.started, now, run.peak)

    def to_status(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "version": self.version,
            "outcome": self.outcome,
            "stable": self.stable,
            "reason": self.reason,
            "peak": self.peak,
            **({"startedAt": timestamps.written(self.started)} if self.started is not None else {}),
            **({"endedAt": timestamps.written(self.ended)} if self.ended is not None else {}),
        }

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> "Ended":
        return cls(
            id=status["id"],
            version=status["version"],
            outcome=status["outcome"],
            stable=status.get("stable", ""),
            reason=status.get("reason", ""),
            started=timestamps.read(status.get("startedAt")),
            ended=timestamps.read(status.get("endedAt")),
            peak=status.get("peak", 0),
        )
