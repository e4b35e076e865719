"""One look at a PolicyRollout after another: observe, decide, write, act. Every look begins with what is true, so that
a lost event, a conflict or a kill only costs the time until the next one."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anyloop.log import LogError
from anyloop.telemetry import metrics
from k8s import decide, exposition, moves, notices, report
from k8s.api import ROLLOUTS, Api, Json
from k8s.checkpoints import Checkpoints
from k8s.config import ControllerSettings
from k8s.decide import Decision, World
from k8s.fleet import Fleet, Limits
from k8s.informer import Informer, Key
from k8s.measuring import Meter, StepAnalysis
from k8s.moves import Observed
from k8s.pods import Pod, in_order
from k8s.queue import WorkQueue
from k8s.replicas import Replicas
from k8s.run import COMPLETED, PROGRESSING, PROMOTING, Ended, Run
from k8s.spec import FINALIZER, Spec, SpecError
from k8s.verdicts import Measurement, Step

logger = logging.getLogger(__name__)

_SOON = 0.1  # changes that come together are looked at together
_ASKED_PER_SECOND = 100  # replicas of one fleet whose status is asked


class NoLongerLeader(Exception):
    """The Lease is lost: nothing may be changed any more."""


@dataclass
class Memory:
    """What is kept of a PolicyRollout between two looks. All of it can be found out again."""

    fleet: Fleet
    written: Json | None = None  # the object as this controller wrote it last; the informer may be behind
    wrote_at: float = -math.inf
    analysis: StepAnalysis | None = None
    analysed: str = ""  # the run, the step and its begin that the analysis belongs to
    begun: str = ""  # the run of which this controller has told that it began
    shown: set[str] = field(default_factory=set)  # versions in the metrics


class Reconciler:
    def __init__(
        self,
        api: Api,
        checkpoints: Checkpoints,
        replicas: Replicas,
        meter: Meter,
        settings: ControllerSettings,
        rollouts: Informer[Json],
        pods: Informer[Pod],
        queue: WorkQueue[Key],
        leads: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._checkpoints = checkpoints
        self._replicas = replicas
        self._meter = meter
        self._settings = settings
        self._rollouts = rollouts
        self._pods = pods
        self._queue = queue
        self._leads = leads
        self._clock = clock  # of what is written, which another controller may read
        self._elapsed = elapsed  # of what only this process waits for
        calls = asyncio.Semaphore(settings.concurrency)
        swaps = asyncio.Semaphore(settings.concurrency)
        self._limits = Limits(calls, swaps, settings.call_seconds, settings.swap_seconds, leads)
        self._memories: dict[Key, Memory] = {}

    async def reconcile(self, key: Key) -> float:
        """One look; how many seconds until the next one at the latest. Raises ApiError, LogError."""
        rollout = self._newest(key)
        if rollout is None:
            await self.forget(key)
            return math.inf
        try:
            spec = Spec.parse(rollout["spec"])
        except SpecError as error:
            logger.error("%s/%s cannot be acted on: %s", *key, error)
            return self._settings.idle_seconds
        memory = self._memory(key)
        world = await self._look(key, rollout, spec, memory)
        await self._reject_overtaken(key, world)
        decision = decide.decide(world)
        measured = list(memory.analysis.measurements.values()) if memory.analysis else _measured(rollout)
        again = await self._carry_out(key, rollout, world, decision, memory, measured)
        memory.fleet.settle(len(world.failures), len(world.lost))
        return again

    async def forget(self, key: Key) -> None:
        """The PolicyRollout is gone."""
        memory = self._memories.pop(key, None)
        if memory is not None:
            await memory.fleet.close()
            exposition.forget(key, memory.shown)

    async def close(self) -> None:
        """Breaks off every change that runs."""
        for key in list(self._memories):
            await self.forget(key)

    def _newest(self, key: Key) -> Json | None:
        """The informer's copy, or what this controller wrote after it."""
        found = self._rollouts.get(key)
        memory = self._memories.get(key)
        if found is None or memory is None or memory.written is None:
            return found
        written = memory.written
        if found["metadata"]["uid"] != written["metadata"]["uid"]:
            return found
        return written if _version(written) > _version(found) else found

    def _memory(self, key: Key) -> Memory:
        if key not in self._memories:
            self._memories[key] = Memory(Fleet(self._replicas, self._limits, lambda: self._queue.add(key, _SOON)))
        return self._memories[key]

    async def _look(self, key: Key, rollout: Json, spec: Spec, memory: Memory) -> World:
        status = rollout.get("status", {})
        run = Run.from_status(status["run"]) if "run" in status else None
        fleet = memory.fleet
        pods = [pod for pod in self._pods if pod.namespace == key[0] and spec.selects(pod.labels)]
        age = self._settings.idle_seconds if run is None else self._settings.observe_seconds
        given = run.version if run is not None and run.state == PROGRESSING else ""
        await fleet.observe(pods, max(age, len(pods) / _ASKED_PER_SECOND), given)
        if run is not None and run.state == PROMOTING:
            with suppress(LogError):  # where it is away, the announcement will say so
                await self._checkpoints.refresh()  # an operator's promotion is not promoted over
        lineage = self._checkpoints.lineage(spec.lineage)
        target = run.version if run is not None else lineage.stable
        seen = Observed(
            total=len(fleet.pods),
            usable=len(fleet.usable),
            on_target=len(fleet.serving(target)),
            unreachable=len(fleet.unreachable),
            swapping=fleet.swapping,
            trouble=fleet.trouble,
        )
        await self._measure(key, spec, run, memory, status)
        history = [Ended.from_status(one) for one in status.get("history", ())]
        return World(
            spec=spec,
            lineage=lineage,
            seen=seen,
            now=self._clock(),
            run=run,
            history=history,
            handled=status.get("handledTarget", ""),
            given_up=status.get("givenUp", [one.version for one in history if one.outcome != COMPLETED]),
            annotations=rollout["metadata"].get("annotations") or {},
            generation=rollout["metadata"].get("generation", 0),
            deleting="deletionTimestamp" in rollout["metadata"],
            deletion_seconds=self._settings.deletion_seconds,
            rival=self._rival(key, rollout, spec),
            verdict=memory.analysis.verdict if memory.analysis is not None else Step(conclusive=False),
            failures=tuple(fleet.failures),
            lost=tuple(fleet.lost),
            unready={pod.name for pod in fleet.pods if not pod.usable},
        )

    async def _measure(self, key: Key, spec: Spec, run: Run | None, memory: Memory, status: Mapping[str, Any]) -> None:
        """Keeps the analysis of the present step, from the moment when its replicas serve the target."""
        if run is None or run.state != PROGRESSING or run.reached is None or run.step >= len(spec.steps):
            memory.analysis, memory.analysed = None, ""
            return
        if not spec.steps[run.step].analysis or not spec.analysis.live:
            memory.analysis, memory.analysed = None, ""
            return
        if run.paused is not None:
            return
        about = f"{run.id}/{run.step}/{spec.analysis}"
        if memory.analysed != about:
            known = _measured({"status": status}) if status.get("run", {}).get("step") == run.step else []
            served_for = 0.0 if known else max(self._clock() - run.reached, 0.0)
            fresh = [one for one in known if one.at is not None and one.at > run.step_began]
            memory.analysis = StepAnalysis(spec.analysis, self._meter, served_for, fresh, self._clock, self._elapsed)
            memory.analysed = about
        if memory.analysis is not None:
            fleet = memory.fleet
            target = in_order(fleet.serving(run.version))
            total = len(fleet.pods)
            stable = in_order(fleet.serving(run.stable)) if moves.goal(spec, run, total) < total else None
            names = {
                "version": run.version,
                "stable": run.stable,
                "namespace": key[0],
                "pods": "|".join(pod.name for pod in target),
            }
            await memory.analysis.measure(target, stable, spec.lineage, names)

    def _rival(self, key: Key, rollout: Json, spec: Spec) -> str:
        """Of several PolicyRollouts of one lineage the oldest decides: the log promotes one version for all."""
        mine = _age(rollout)
        for other in self._rollouts:
            if other["spec"].get("lineage", "policy") == spec.lineage and _age(other) < mine:
                return f"{other['metadata']['namespace']}/{other['metadata']['name']}"
        return ""

    async def _reject_overtaken(self, key: Key, world: World) -> None:
        """Approved versions that no rollout will take up: who waits for them must hear it."""
        if world.rival or world.spec.version or world.deleting:
            return
        for version in list(world.lineage.overtaken):
            if world.run is None or world.run.version != version:
                self._still_leading()
                approved = world.lineage.approved
                why = f"overtaken by {approved.version if approved is not None else world.lineage.stable}"
                about = f"rollout/{key[0]}/{key[1]}/{version}/overtaken"
                by = f"rollout/{key[0]}/{key[1]}"
                await self._checkpoints.reject(world.spec.lineage, version, by=by, reason=why, audit_id=about)

    async def _carry_out(
        self,
        key: Key,
        rollout: Json,
        world: World,
        decision: Decision,
        memory: Memory,
        measured: list[Measurement],
    ) -> float:
        before = rollout.get("status", {})
        if decision.ended is not None:
            memory.fleet.end_run()
            try:
                await self._announce(key, world, decision)
            except LogError as error:
                if not _waited_enough(world):
                    raise
                logger.error("%s/%s is let go, and the log does not say what became of its rollout: %s", *key, error)
        if decision.run is not None:
            rollout = await self._hold(key, rollout, memory)
        failure = self._checkpoints.failure
        generation = rollout["metadata"].get("generation", 0)
        status = report.status_of(world, decision, memory.fleet, measured, before, generation, failure)
        at_once, sometime = report.differs(status, before)
        memory.shown = exposition.show(key, status, memory.shown, world.now)
        waits = memory.wrote_at + self._settings.status_seconds - self._elapsed()
        if at_once or (sometime and waits <= 0):
            self._still_leading()
            if world.run is not None:  # before it is written: who is killed between says it again, by the same name
                await self._tell(key, rollout, world, decision, memory)
            body = {**rollout, "status": status}
            memory.written = await self._api.replace(ROLLOUTS, *key, body, "status")
            memory.wrote_at = self._elapsed()
            if decision.ended is not None:  # here: what follows may meet a conflict, and the end is written once
                metrics.ROLLOUTS.labels(_OUTCOMES[decision.ended.outcome]).inc()
            rollout = memory.written
            if world.run is None:  # what begins has its name from now on
                await self._tell(key, rollout, world, decision, memory)
        if decision.run is None:
            await self._let_go(key, rollout, memory)
        if decision.ended is not None:
            return 0.0
        if decision.run is not None and at_once:
            return 0.0  # what is written now is acted upon at the next look
        self._act(world, decision, memory)
        return self._next_look(world, decision, memory, waits if sometime and not at_once else math.inf)

    def _act(self, world: World, decision: Decision, memory: Memory) -> None:
        """Who is to change its weights, from now on."""
        fleet, spec = memory.fleet, world.spec
        stable = world.lineage.stable
        back = {
            pod.uid: stable
            for pod in fleet.usable
            if fleet.version(pod) in decision.back and fleet.changing_to(pod) in ("", stable)
        }
        if decision.run is None or decision.run.state != PROGRESSING:
            fleet.want(back, spec.swap_mode, self._settings.concurrency)
            return
        version = decision.run.version
        others = [
            pod
            for pod in in_order(fleet.usable)
            if fleet.version(pod) not in ("", version) and fleet.changing_to(pod) != version
        ]
        others.sort(key=lambda pod: fleet.version(pod) == stable)  # those of a rollout before, first
        chosen = others[: decision.change]
        wanted = {pod.uid: version for pod in chosen}
        for uid in back:  # what a rollout before left, and this one does not take now, serves nobody any longer
            wanted.setdefault(uid, stable)
        fleet.want(wanted, spec.swap_mode, spec.max_swapping, {version: world.lineage.digest(version)})

    def _next_look(self, world: World, decision: Decision, memory: Memory, status_in: float) -> float:
        idle = decision.run is None and not decision.back
        pace = self._settings.idle_seconds if idle else self._settings.observe_seconds
        if decision.run is not None and memory.fleet.swapping == 0 and decision.change:
            pace = min(pace, 1.0)  # a replica that failed waits for its next attempt
        due = [pace, status_in]
        if decision.until is not None:
            due.append(decision.until - world.now)
        if memory.analysis is not None and decision.phase != "Paused":
            due.append(memory.analysis.next_in)
        return max(min(due), 0.05)

    async def _announce(self, key: Key, world: World, decision: Decision) -> None:
        word, ended = decision.announce, decision.ended
        if word is None or ended is None:
            return
        self._still_leading()
        by = f"rollout/{key[0]}/{key[1]}"
        about = f"{by}/{ended.id}/{'promoted' if word.promote else 'rejected'}"
        lineage, version = world.spec.lineage, word.version
        if word.promote:
            await self._checkpoints.promote(lineage, version, by=by, reason=word.reason, audit_id=about)
        else:
            reject = self._checkpoints.reject
            await reject(lineage, version, by=by, reason=word.reason, audit_id=about, after=word.after)

    async def _hold(self, key: Key, rollout: Json, memory: Memory) -> Json:
        """A deletion in the middle of a rollout waits until the fleet is back."""
        finalizers = rollout["metadata"].get("finalizers", [])
        if FINALIZER in finalizers or "deletionTimestamp" in rollout["metadata"]:
            return rollout
        return await self._set_finalizers(key, rollout, memory, [*finalizers, FINALIZER])

    async def _let_go(self, key: Key, rollout: Json, memory: Memory) -> None:
        finalizers = rollout["metadata"].get("finalizers", [])
        if FINALIZER in finalizers:
            kept = [one for one in finalizers if one != FINALIZER]
            await self._set_finalizers(key, rollout, memory, kept)

    async def _set_finalizers(self, key: Key, rollout: Json, memory: Memory, finalizers: list[str]) -> Json:
        self._still_leading()
        metadata = {"finalizers": finalizers, "resourceVersion": rollout["metadata"]["resourceVersion"]}
        memory.written = await self._api.patch(ROLLOUTS, *key, {"metadata": metadata})
        return memory.written

    async def _tell(self, key: Key, rollout: Json, world: World, decision: Decision, memory: Memory) -> None:
        run = decision.run or decision.ended
        told = decision.notices
        if world.run is not None and memory.begun != world.run.id:  # a controller before may not have come to say so
            told = (decide.begun(world, world.run), *told)
        for notice in told:
            logger.info("%s/%s: %s: %s", *key, notice.reason, notice.message)
            await notices.tell(self._api, rollout, notice, self._settings.holder, world.now)
            if notice.audit:
                await self._checkpoints.audit(
                    action=notice.audit,
                    subject=run.version if run is not None else "",
                    actor=notice.actor or f"rollout/{key[0]}/{key[1]}",
                    reason=notice.message,
                    details={"rollout": f"{key[0]}/{key[1]}", "run": run.id if run is not None else ""},
                    audit_id=f"rollout/{key[0]}/{key[1]}/{notice.about}/{notice.audit}",
                )
        memory.begun = decision.run.id if decision.run is not None else ""

    def _still_leading(self) -> None:
        if not self._leads():
            raise NoLongerLeader


_OUTCOMES = {"Completed": "completed", "RolledBack": "rolled_back", "Superseded": "superseded", "Aborted": "aborted"}


def _waited_enough(world: World) -> bool:
    """For the log, by who is being deleted."""
    return world.deleting and world.run is not None and world.now - world.run.progress >= world.deletion_seconds


def _measured(rollout: Mapping[str, Any]) -> list[Measurement]:
    return [Measurement.from_status(one) for one in rollout.get("status", {}).get("analysis", ())]


def _version(rollout: Json) -> int:
    return int(rollout["metadata"]["resourceVersion"])


def _age(rollout: Json) -> tuple[str, str]:
    return rollout["metadata"]["creationTimestamp"], rollout["metadata"]["uid"]
