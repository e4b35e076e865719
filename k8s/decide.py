"""What becomes of a PolicyRollout at one look: pure, from what it asks for, what the log says and what was observed.

A decision is carried out in the order that survives a kill at any point: a change of the run is written first, then
acted upon; what is announced in the log is announced before the run's end is written, and only once.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from anyloop.registry.announce import APPROVED, PROMOTED
from k8s import moves, verdicts
from k8s.checkpoints import Lineage
from k8s.fleet import Failure, Loss
from k8s.moves import Act, Observed
from k8s.notices import Notice
from k8s.replicas import Fault
from k8s.run import ABORTED, COMPLETED, PROMOTING, ROLLED_BACK, ROLLING_BACK, SUPERSEDED, Ended, Run
from k8s.spec import ABORT, ADVANCE, PAUSED_BY, RETRY, GateReport, Spec
from k8s.verdicts import Verdict

_LEFT_BEHIND_SECONDS = 60.0  # how long a rollback waits for replicas that do not answer
_PHASES = {COMPLETED: "Completed", ROLLED_BACK: "RolledBack", SUPERSEDED: "Superseded", ABORTED: "Aborted"}


@dataclass(frozen=True)
class World:
    """Everything a decision depends on."""

    spec: Spec
    lineage: Lineage
    seen: Observed
    now: float
    run: Run | None = None
    history: Sequence[Ended] = ()
    handled: str = ""  # the spec's version that was rolled out or given up last
    given_up: Collection[str] = ()  # versions whose replicas go back to the stable one
    annotations: Mapping[str, str] = field(default_factory=dict)
    generation: int = 0  # of the spec
    deleting: bool = False
    deletion_seconds: float = 120.0  # longest that a deletion waits for replicas to go back
    rival: str = ""  # the older PolicyRollout of the same lineage
    verdict: verdicts.Step = field(default_factory=verdicts.Step)
    failures: Sequence[Failure] = ()
    lost: Sequence[Loss] = ()
    unready: Collection[str] = ()  # names of the replicas that are not usable

    def asked(self, annotation: str, about: str) -> str | None:
        """Who asked for it, empty where that is not said; None when nobody did."""
        what, _, who = self.annotations.get(annotation, "").partition(" ")
        return who if what == about else None


@dataclass(frozen=True)
class Announce:
    """A word in the log: PROMOTED, or REJECTED."""

    promote: bool
    version: str
    reason: str
    after: int = -1  # the offset in the log after which it has to be said


@dataclass(frozen=True)
class Decision:
    phase: str
    reason: str
    message: str
    run: Run | None = None
    ended: Ended | None = None
    handled: str = ""
    announce: Announce | None = None
    notices: tuple[Notice, ...] = ()
    change: int = 0  # how many more replicas go to the run's version
    back: frozenset[str] = frozenset()  # versions whose replicas go back to the stable one
    until: float | None = None  # when to look again at the latest


def decide(world: World) -> Decision:
    run = world.run
    if run is None:
        return _idle(world)
    if world.lineage.stable == run.version:
        by = world.lineage.promoted_by
        return _end(world, run, COMPLETED, f"{run.version} is promoted by {by or 'another'}")
    if run.state == ROLLING_BACK:
        return _roll_back(world, run)
    if run.state == PROMOTING:
        why = f"{run.peak} replicas serve {run.version}, {len(world.spec.steps)} steps are done"
        if _promoted_since(world, run):
            return _overtaken(world, run)
        if world.deleting and world.now - run.progress >= world.deletion_seconds:
            why = "the PolicyRollout was deleted, and the log did not take the promotion"
            return _turn_back(world, run, ABORTED, why, "Aborted")
        return _end(world, run, COMPLETED, why, Announce(True, run.version, why))
    return _progress(world, run)


def _idle(world: World) -> Decision:
    spec, lineage = world.spec, world.lineage
    if world.deleting:
        return _rest(world, "Idle", "Deleted", "nothing is under way")
    if world.rival:
        why = f"{world.rival} is older and rolls out {spec.lineage}: delete one of the two"
        return _rest(world, "Conflicted", "OlderRollout", why)
    if not lineage.stable:
        return _rest(world, "Pending", "NothingPromoted", f"no {spec.lineage} version is promoted in the log yet")
    version = _target(world)
    if not version or version == lineage.stable:
        return _settled(world, version)
    if version not in lineage.newest:
        why = f"the log knows no version {version}: see `anyloop checkpoints list`"
        return _rest(world, "Pending", "UnknownVersion", why)
    if spec.paused:
        return _rest(world, "Paused", "Paused", f"{version} waits: spec.paused is true")
    if not world.seen.answering:
        return _rest(world, "Pending", "NoReplica", f"{version} waits: no replica is ready and answers")
    run = Run.begin(version, lineage.stable, len(spec.steps), lineage.offset, world.now)
    for metric in spec.analysis.metrics:
        if isinstance(metric.test, GateReport):
            found = verdicts.of_gate(metric.name, metric.test, lineage.report(version))
            if found.verdict is not Verdict.PASSED:
                why = f"metric {metric.name}: {found.message}"
                run = replace(run, log_offset=None)  # it is not written: a rejection may be of a look before
                return _end(world, run, ROLLED_BACK, why, _rejection(world, run, ROLLED_BACK, why))
    notice = begun(world, run)
    handled = spec.version or world.handled
    return Decision("Progressing", "Started", notice.message, run, handled=handled, notices=(notice,))


def begun(world: World, run: Run) -> Notice:
    """What is told of a run that begins: once, by the same name whoever tells it."""
    why = f"{run.version} replaces {run.stable} on {world.seen.total} replicas in {run.steps} steps"
    last = world.history[0].id if world.history else ""
    return Notice("RolloutStarted", why, run.id, audit="rollout.start", actor=world.asked(RETRY, last) or "")


def _target(world: World) -> str:
    """The version to roll out now; empty when there is none."""
    last = world.history[0] if world.history else None
    if last is not None and last.outcome != COMPLETED and world.asked(RETRY, last.id) is not None:
        return last.version
    if world.spec.version:
        return "" if world.spec.version == world.handled else world.spec.version
    approved = world.lineage.approved
    return approved.version if approved is not None else ""


def _settled(world: World, version: str) -> Decision:
    """Nothing to roll out: as the last rollout ended."""
    handled = version if version and version == world.spec.version else world.handled
    last = world.history[0] if world.history else None
    message = f"{world.lineage.stable} is promoted"
    if last is None or (last.outcome != COMPLETED and handled == world.lineage.stable):
        return _rest(world, "Idle", "UpToDate", message, handled)
    if last.outcome == COMPLETED:
        return _rest(world, "Completed", "UpToDate", message, handled)
    return _rest(world, _PHASES[last.outcome], last.outcome, f"{last.version}: {last.reason}", handled)


def _rest(world: World, phase: str, reason: str, message: str, handled: str = "") -> Decision:
    """No run. Replicas that a rollout left on its version, because they did not answer, go back."""
    back = _left_behind(world) if world.lineage.stable and not world.rival else frozenset()
    return Decision(phase, reason, message, handled=handled or world.handled, back=back)


def _left_behind(world: World, but: str = "") -> frozenset[str]:
    return frozenset(world.given_up).difference((world.lineage.stable, but))


def _progress(world: World, run: Run) -> Decision:
    spec, now = world.spec, world.now
    if _promoted_since(world, run) or _replaced(world, run):
        return _overtaken(world, run)
    if stop := _stopped(world, run):
        return _turn_back(world, run, ABORTED, stop, "Aborted")
    refused = next((one for one in world.failures if one.version == run.version and one.fault is Fault.REFUSED), None)
    if refused is not None:
        return _turn_back(
            world, run, ROLLED_BACK, f"a replica refused the weights: {refused.message}", "WeightsRefused"
        )
    run, notices = _crashes(world, run)
    if spec.paused:
        return _paused(world, run, notices)
    if run.paused is not None:
        by = world.annotations.get(PAUSED_BY, "")
        notices.append(
            Notice("Resumed", "the rollout goes on", f"{run.id}/{run.paused}", audit="rollout.resume", actor=by)
        )
        run = run.resumed(now)
    run, found = _observed(world, run)
    notices += found
    advanced = world.asked(ADVANCE, f"{run.id}/{run.step}")
    move = moves.next_move(spec, run, world.seen, world.verdict, advanced is not None, now)
    if move.act is Act.ROLL_BACK:
        return _turn_back(world, run, ROLLED_BACK, move.message, move.reason)
    if move.act is Act.FINISH:
        run = replace(run, state=PROMOTING, progress=now)
        return Decision("Promoting", "Promoting", f"{run.version} is being promoted", run, notices=tuple(notices))
    if move.act is Act.NEXT:
        why = f"step {run.step + 2} of {run.steps} of {run.version}"
        about = f"{run.id}/{run.step + 1}"
        notices.append(Notice("StepStarted", why, about, audit="rollout.step", actor=advanced or ""))
        return Decision("Progressing", "StepStarted", why, run.at_step(run.step + 1, now), notices=tuple(notices))
    change = moves.budget(spec, run, world.seen)
    until = min(move.until if move.until is not None else math.inf, run.started + spec.max_mixed)
    back = _left_behind(world, run.version)
    noted = tuple(notices)
    return Decision(move.phase, move.reason, move.message, run, notices=noted, change=change, back=back, until=until)


def _crashes(world: World, run: Run) -> tuple[Run, list[Notice]]:
    """The run with the replicas that failed since the last look."""
    broke = [one.message for one in world.failures if one.version == run.version and one.fault is Fault.BROKE]
    crashed = [one.pod for one in world.lost if one.version == run.version]
    bad = [*broke, *(f"{name} crashed or was restarted on {run.version}" for name in crashed)]
    notices = [
        Notice("ReplicaFailed", message, f"{run.id}/failure/{run.failures + number}", warning=True)
        for number, message in enumerate(bad)
    ]
    run = run.looked_at(world.seen.usable, world.unready, crashed, world.now)
    return replace(run, failures=run.failures + len(bad)), notices


def _observed(world: World, run: Run) -> tuple[Run, list[Notice]]:
    """The run with what was seen: how far it came."""
    spec, seen, now = world.spec, world.seen, world.now
    notices: list[Notice] = []
    steps = len(spec.steps)
    run = replace(run, steps=steps, step=min(run.step, steps - 1))
    if seen.on_target > run.peak:
        run = replace(run, peak=seen.on_target, progress=now)
    done = moves.reached(spec, run, seen)
    if run.reached is None and done:
        message = f"step {run.step + 1} of {steps}: {seen.on_target} of {seen.total} replicas serve {run.version}"
        if seen.on_target:
            notices.append(Notice("StepReached", message, f"{run.id}/{run.step}"))
        run = replace(run, reached=now, progress=now)
    elif run.reached is not None and done != (run.short is None):
        run = replace(run, short=None if done else now)
    return run, notices


def _paused(world: World, run: Run, notices: Sequence[Notice]) -> Decision:
    end = run.started + world.spec.max_mixed
    if world.now >= end:
        why = f"the rollout took longer than maxMixedSeconds ({world.spec.max_mixed:g}), part of it paused"
        return _turn_back(world, run, ROLLED_BACK, why, "MixedTooLong")
    if run.paused is None:
        run = replace(run, paused=world.now)
        by = world.annotations.get(PAUSED_BY, "")
        about = f"{run.id}/{world.generation}"
        notices = (*notices, Notice("Paused", "spec.paused is true", about, audit="rollout.pause", actor=by))
    return Decision("Paused", "Paused", "spec.paused is true", run, notices=tuple(notices), until=end)


def _promoted_since(world: World, run: Run) -> bool:
    """Whether somebody promoted a version since the run began, be it the stable one again."""
    if world.lineage.stable != run.stable:
        return True
    return run.log_offset is not None and world.lineage.promoted_at > run.log_offset


def _replaced(world: World, run: Run) -> bool:
    """Whether another version is to be rolled out instead."""
    if world.deleting:
        return False
    if world.spec.version:
        return world.spec.version not in (run.version, world.handled, world.lineage.stable)
    approved = world.lineage.approved
    return approved is not None and approved.version != run.version


def _stopped(world: World, run: Run) -> str:
    """Who or what ends the run; empty when nothing does."""
    if world.deleting:
        return "the PolicyRollout was deleted"
    if world.rival:
        return f"{world.rival} is older and rolls out {world.spec.lineage}"
    if (who := world.asked(ABORT, run.id)) is not None:
        return f"aborted by {who or 'an operator'}"
    if world.spec.version == world.lineage.stable:
        return f"the target is the stable version {world.lineage.stable} again"
    word = world.lineage.newest.get(run.version)
    if word is not None and run.log_offset is not None and world.lineage.rejected(run.version, run.log_offset):
        return f"{run.version} was rejected by {word.decided_by or 'another'}: {word.reason}"
    return ""


def _overtaken(world: World, run: Run) -> Decision:
    """Its replicas follow the other promotion by themselves, or the next run takes them over."""
    lineage = world.lineage
    if _promoted_since(world, run):
        again = " again" if lineage.stable == run.stable else ""
        why = f"{lineage.stable} was promoted{again} by {lineage.promoted_by or 'another'}"
    else:
        approved = lineage.approved.version if lineage.approved is not None else "another version"
        why = f"{world.spec.version or approved} is rolled out instead"
    return _end(world, run, SUPERSEDED, why, _rejection(world, run, SUPERSEDED, f"superseded: {why}"))


def _turn_back(world: World, run: Run, outcome: str, why: str, reason: str) -> Decision:
    action = "rollout.abort" if outcome == ABORTED else "rollout.rollback"
    by = world.asked(ABORT, run.id) or ""
    notice = Notice(reason, f"{run.version} goes back to {run.stable}: {why}", run.id, True, action, by)
    turned = run.rolling_back(outcome, why, world.now)
    return Decision("RollingBack", reason, why, turned, notices=(notice,))


def _roll_back(world: World, run: Run) -> Decision:
    seen, waited = world.seen, world.now - run.progress
    left = seen.on_target + seen.swapping
    silent = seen.unreachable if waited < _LEFT_BEHIND_SECONDS else 0
    patience = world.deletion_seconds if world.deleting else world.spec.progress_deadline
    message = f"{left} replicas still serve {run.version}, {seen.unreachable} do not answer: {run.reason}"
    if (left or silent) and waited < patience:
        until = run.progress + (patience if left else min(patience, _LEFT_BEHIND_SECONDS))
        return Decision("RollingBack", "RollingBack", message, run, back=frozenset([run.version]), until=until)
    reason = run.reason if not left else f"{run.reason}; {left} replicas did not go back and are tried again"
    outcome = run.outcome or ROLLED_BACK
    return _end(world, run, outcome, reason, _rejection(world, run, outcome, run.reason))


def _rejection(world: World, run: Run, outcome: str, why: str) -> Announce | None:
    """Who waits for the version must hear that it will not come. What has served before keeps its name: only the newest
    word on a version is kept; and whoever changed their mind has not judged it, unless somebody waits for a word."""
    word = world.lineage.newest.get(run.version)
    if word is None or word.state == PROMOTED or (outcome != ROLLED_BACK and word.state != APPROVED):
        return None
    return Announce(False, run.version, why, -1 if run.log_offset is None else run.log_offset)


def _end(world: World, run: Run, outcome: str, why: str, announce: Announce | None = None) -> Decision:
    ended = Ended.of(run, outcome, why, world.now)
    bad = outcome in (ROLLED_BACK, ABORTED)
    message = f"{run.version}: {why}"
    audit = "rollout.complete" if outcome == COMPLETED else ""
    notice = Notice(outcome, message, f"{run.id}/end", bad, audit)
    handled = world.spec.version or world.handled
    if outcome == SUPERSEDED and run.version != world.spec.version:
        handled = world.handled  # the spec names another one, whose turn it is now
    return Decision(_PHASES[outcome], outcome, message, None, ended, handled, announce, (notice,))
