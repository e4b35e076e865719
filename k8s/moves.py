"""What a run does next: pure decisions on what was observed. No I/O, no clock."""

import math
from dataclasses import dataclass
from enum import StrEnum

from k8s.run import Run
from k8s.spec import MANUAL, Spec, Step
from k8s.verdicts import Step as StepVerdict


@dataclass(frozen=True)
class Observed:
    """The fleet at one look. `on_target` and `unreachable` are among the `usable` ones."""

    total: int
    usable: int
    on_target: int = 0
    unreachable: int = 0
    swapping: int = 0
    trouble: str = ""  # why a change failed that is tried again

    @property
    def answering(self) -> int:
        return self.usable - self.unreachable


class Act(StrEnum):
    WAIT = "wait"
    NEXT = "next"  # begin the next step
    FINISH = "finish"  # every step is done: promote
    ROLL_BACK = "roll back"


@dataclass(frozen=True)
class Move:
    act: Act
    phase: str = "Progressing"
    reason: str = ""  # a condition's reason, in CamelCase
    message: str = ""
    until: float | None = None  # when a wait may be over


def goal(spec: Spec, run: Run, total: int) -> int:
    """How many replicas the present step wants on the target."""
    return min(_step(spec, run).replicas.up(total), total)


def budget(spec: Spec, run: Run, seen: Observed) -> int:
    """How many more replicas may be changed now.

    One that was lost counts as changed: weights that crash their replicas take as many as the step allows, and no more.
    One that was never changed and is not ready, because it is new, counts for nothing.
    """
    return max(0, goal(spec, run, seen.total) - seen.on_target - seen.swapping - len(run.lost))


def reached(spec: Spec, run: Run, seen: Observed) -> bool:
    """Whether the step's replicas serve the target. Those that have not started yet hold nothing up at the end, nor do
    few that do not answer or are lost: they read the promotion in the log."""
    if _step(spec, run).waits_before_any:
        return not seen.swapping
    missed = seen.unreachable + len(run.lost)
    able = seen.usable + len(run.lost) - min(missed, spec.max_unreachable.down(seen.total))
    return not seen.swapping and seen.on_target > 0 and seen.on_target >= min(goal(spec, run, seen.total), able)


def next_move(spec: Spec, run: Run, seen: Observed, verdict: StepVerdict, advanced: bool, now: float) -> Move:
    """For a run that is under way and not paused."""
    step = spec.steps[run.step]
    last = run.step == len(spec.steps) - 1
    where = f"step {run.step + 1} of {len(spec.steps)}"
    if run.failures > _bearable(spec, seen.total):
        why = f"{run.failures} replicas crashed on {run.version} or failed to load it"
        return Move(Act.ROLL_BACK, reason="ReplicasFailed", message=why)
    if now - run.started >= spec.max_mixed:
        why = f"the rollout took longer than maxMixedSeconds ({spec.max_mixed:g})"
        return Move(Act.ROLL_BACK, reason="MixedTooLong", message=why)
    watched = step.analysis and bool(spec.analysis.live) and not step.waits_before_any
    if watched and verdict.failed:
        return Move(Act.ROLL_BACK, reason="AnalysisFailed", message=verdict.failed)
    if not seen.usable and not step.waits_before_any:  # no replica is at fault: there is none
        return Move(Act.WAIT, "Progressing", "NoReplica", f"{where}: no replica is ready", math.inf)
    if run.reached is None:
        return _swapping(spec, run, seen, where, run.progress, now)
    onward = Move(Act.FINISH if last else Act.NEXT)
    if run.short is not None:  # a replica restarted, or one was added: the step goes on only with all of its replicas
        onward = _swapping(spec, run, seen, where, run.short, now)
    if advanced:
        return onward
    over = run.reached + step.pause
    if step.pause == MANUAL:
        hint = f"{where} waits for an operator: `anyloop rollouts advance`"
        return Move(Act.WAIT, "AwaitingAdvance", "AwaitingAdvance", hint, run.started + spec.max_mixed)
    if now < over:
        return Move(Act.WAIT, "Analyzing" if watched else "Progressing", "StepPause", f"{where} pauses", over)
    if watched and not verdict.conclusive and (spec.analysis.waits or verdict.doubt):
        deadline = max(over, run.progress) + spec.progress_deadline
        if now >= deadline:
            doubt = f" ({verdict.doubt})" if verdict.doubt else ""
            why = f"{where}: metrics stayed inconclusive for {spec.progress_deadline:g} s{doubt}"
            return Move(Act.ROLL_BACK, reason="DeadlineExceeded", message=why)
        return Move(Act.WAIT, "Analyzing", "Analyzing", f"{where} is being measured", deadline)
    return onward


def _step(spec: Spec, run: Run) -> Step:
    return spec.steps[min(run.step, len(spec.steps) - 1)]


def _bearable(spec: Spec, total: int) -> int:
    """How many replicas may fail: not all, however few there are."""
    return min(spec.max_replica_failures, total - 1) if total else spec.max_replica_failures


def _swapping(spec: Spec, run: Run, seen: Observed, where: str, since: float, now: float) -> Move:
    wanted = goal(spec, run, seen.total)
    progress = f"{where}: {seen.on_target} of {wanted} replicas serve {run.version}"
    deadline = since + spec.progress_deadline
    if now >= deadline:
        trouble = f" ({seen.trouble})" if seen.trouble else ""
        why = f"{progress}, and nothing moved for {spec.progress_deadline:g} s{trouble}"
        return Move(Act.ROLL_BACK, reason="DeadlineExceeded", message=why)
    return Move(Act.WAIT, "Progressing", "ReplicasChanging", progress, deadline)
