"""The replicas of one PolicyRollout: what each serves, as far as is known, and the changes of weights under way.

Kept in memory and found out again by who takes over: what is true stands in the replicas.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from k8s.pods import Pod
from k8s.replicas import Fault, ReplicaError, Replicas, Served

logger = logging.getLogger(__name__)

_FIRST_WAIT = 1.0
_LONGEST_WAIT = 30.0


@dataclass
class Observation:
    """What one process of a replica said last."""

    incarnation: str
    at: float
    served: Served | None = None  # None: it did not answer
    error: str = ""


@dataclass
class Attempt:
    """Changes to one version that failed on one replica."""

    version: str = ""
    failures: int = 0
    not_before: float = 0.0


@dataclass(frozen=True)
class Failure:
    """A change that a replica could not make."""

    pod: str
    version: str
    fault: Fault
    message: str


@dataclass(frozen=True)
class Loss:
    """A replica that crashed on the version that it was given, or was restarted."""

    pod: str
    version: str


@dataclass(frozen=True)
class Given:
    """The weights that a process of a replica was given. Not `taken`: it did not answer, and may yet take them."""

    version: str
    incarnation: str
    taken: bool = True


@dataclass
class Limits:
    """Shared by all fleets of a controller: how many calls run at once, and how long one may take. Changes, which take
    minutes, keep no question waiting."""

    calls: asyncio.Semaphore
    swaps: asyncio.Semaphore
    call_seconds: float
    swap_seconds: float
    allowed: Callable[[], bool] = field(default=lambda: True)  # whether this controller may still change anything


class Fleet:
    """`observe`, then ask, then `want`. `changed` is called when a change of weights has ended."""

    def __init__(
        self,
        replicas: Replicas,
        limits: Limits,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replicas = replicas
        self._limits = limits
        self._changed = changed
        self._clock = clock
        self._pods: dict[str, Pod] = {}
        self._seen: dict[str, Observation] = {}
        self._attempts: dict[str, Attempt] = {}
        self._swaps: dict[str, tuple[str, asyncio.Task[None]]] = {}
        self._backlog: dict[str, str] = {}
        self._mode, self._parallel = "", 1
        self._digests: Mapping[str, str] = {}  # by version
        self._given: dict[str, Given] = {}  # by uid
        self.failures: list[Failure] = []  # not dealt with yet
        self.trouble = ""  # why the last change failed; empty when it did not
        self.lost: list[Loss] = []  # not dealt with yet

    async def observe(self, pods: Iterable[Pod], max_age: float, given: str = "") -> None:
        """Asks the usable replicas whose last answer is older than `max_age` seconds, or of a process before. `given`:
        a version that is being rolled out; who serves it was given it, if only by a controller before."""
        self._pods = {pod.uid: pod for pod in pods}
        self._forget()
        now = self._clock()
        asked = [
            pod
            for pod in self._pods.values()
            if pod.usable and pod.uid not in self._swaps and self._stale(pod, now - max_age)
        ]
        await asyncio.gather(*(self._ask(pod) for pod in asked))
        self._notice_losses()
        for pod in self.serving(given) if given else ():
            self._given[pod.uid] = Given(given, pod.incarnation)

    @property
    def pods(self) -> list[Pod]:
        """Not those that are ending."""
        return [pod for pod in self._pods.values() if not pod.ending]

    @property
    def usable(self) -> list[Pod]:
        return [pod for pod in self._pods.values() if pod.usable]

    def version(self, pod: Pod) -> str:
        """What a replica serves; empty when it does not answer."""
        seen = self._seen.get(pod.uid)
        return seen.served.version if seen and seen.served and seen.incarnation == pod.incarnation else ""

    def served(self, pod: Pod) -> Served | None:
        seen = self._seen.get(pod.uid)
        return seen.served if seen else None

    @property
    def versions(self) -> Counter[str]:
        """How many usable replicas serve which version; those that do not answer are left out."""
        return Counter(version for pod in self.usable if (version := self.version(pod)))

    def serving(self, version: str) -> list[Pod]:
        return [pod for pod in self.usable if self.version(pod) == version]

    @property
    def unreachable(self) -> list[Pod]:
        """Usable by Kubernetes' word, and their control port does not answer."""
        return [pod for pod in self.usable if (seen := self._seen.get(pod.uid)) and seen.served is None]

    @property
    def swapping(self) -> int:
        return len(self._swaps)

    @property
    def why_unreachable(self) -> str:
        errors = [seen.error for pod in self.unreachable if (seen := self._seen.get(pod.uid))]
        return errors[0] if errors else ""

    def want(
        self, versions: Mapping[str, str], mode: str, parallel: int, digests: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """The version that each of these replicas (by uid) is to serve, from now on and instead of what was wanted
        before. `parallel` change at a time; changes that run are not broken off. `digests`: what the log announced of
        the versions' weights; a replica that proves another one was given other weights under the same name."""
        self._backlog = {uid: version for uid, version in versions.items() if self._changing(uid) != version}
        self._mode, self._parallel, self._digests = mode, parallel, digests
        self._fill()

    def changing_to(self, pod: Pod) -> str:
        """The version that a replica is being changed to; empty while it is left alone."""
        return self._changing(pod.uid)

    def _changing(self, uid: str) -> str:
        return self._swaps[uid][0] if uid in self._swaps else ""

    def settle(self, failures: int, lost: int) -> None:
        """So many of the oldest `failures` and `lost` are dealt with."""
        del self.failures[:failures]
        del self.lost[:lost]

    def end_run(self) -> None:
        """Nothing is wanted any more, and what becomes of a replica is not the fault of what it was given."""
        self._backlog.clear()
        self._given.clear()
        self.lost.clear()

    async def close(self) -> None:
        """Breaks off what runs: a replica that is in the middle of a change finishes it by itself."""
        self._backlog.clear()
        tasks = [task for _, task in self._swaps.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stale(self, pod: Pod, before: float) -> bool:
        seen = self._seen.get(pod.uid)
        return seen is None or seen.at <= before or seen.incarnation != pod.incarnation

    async def _ask(self, pod: Pod) -> None:
        async with self._limits.calls:
            try:
                async with asyncio.timeout(self._limits.call_seconds):
                    served = await self._replicas.status(pod)
            except (ReplicaError, TimeoutError) as error:
                message = str(error) or f"{pod.name} did not answer within {self._limits.call_seconds:g} s"
                self._seen[pod.uid] = Observation(pod.incarnation, self._clock(), error=message)
                return
        self._seen[pod.uid] = Observation(pod.incarnation, self._clock(), served)

    def _forget(self) -> None:
        for uid in [uid for uid in self._seen if uid not in self._pods]:
            del self._seen[uid]
            self._attempts.pop(uid, None)
            self._given.pop(uid, None)

    def _notice_losses(self) -> None:
        """A replica that was changed and is not ready any more, or serves something else, has lost it: it crashed."""
        for uid, given in list(self._given.items()):
            pod = self._pods.get(uid)
            if pod is None or pod.ending:
                del self._given[uid]
                continue
            serves_other = given.taken and self.version(pod) not in ("", given.version)
            if not pod.ready or pod.incarnation != given.incarnation or serves_other:
                del self._given[uid]
                self.lost.append(Loss(pod.name, given.version))

    def _fill(self) -> None:
        now = self._clock()
        for uid, version in list(self._backlog.items()):
            if len(self._swaps) >= self._parallel or not self._limits.allowed():
                return
            pod = self._pods.get(uid)
            if pod is None or not pod.usable or uid in self._swaps:
                continue
            if self._attempt(uid, version).not_before > now:
                continue
            del self._backlog[uid]
            self._swaps[uid] = (version, asyncio.create_task(self._swap(pod, version, self._digests.get(version, ""))))

    def _attempt(self, uid: str, version: str) -> Attempt:
        attempt = self._attempts.get(uid)
        return attempt if attempt is not None and attempt.version == version else Attempt(version)

    async def _swap(self, pod: Pod, version: str, digest: str) -> None:
        attempt = self._attempts[pod.uid] = self._attempt(pod.uid, version)
        self._given.pop(pod.uid, None)
        try:
            async with self._limits.swaps, asyncio.timeout(self._limits.swap_seconds):
                served = await self._replicas.activate(pod, version, self._mode)
            self._seen[pod.uid] = Observation(pod.incarnation, self._clock(), served)
            self._given[pod.uid] = Given(version, pod.incarnation)
            self._attempts.pop(pod.uid, None)
            self.trouble = ""
            if digest and served.digest and served.digest != digest:
                raise ReplicaError(
                    f"{pod.name} proves digest {served.digest} for {version}, the log announced {digest}: the "
                    "registry was changed",
                    Fault.REFUSED,
                )
        except (ReplicaError, TimeoutError) as error:
            fault = error.fault if isinstance(error, ReplicaError) else Fault.AWAY
            message = str(error) or f"{pod.name} did not change its weights within {self._limits.swap_seconds:g} s"
            attempt.not_before = self._clock() + min(_FIRST_WAIT * 2**attempt.failures, _LONGEST_WAIT)
            attempt.failures += 1
            self.trouble = message
            self.failures.append(Failure(pod.name, version, fault, message))
            self._seen.pop(pod.uid, None)
            if fault is Fault.AWAY:  # the weights may have crashed it before it could say so
                self._given[pod.uid] = Given(version, pod.incarnation, taken=False)
            logger.warning("%s was not changed to %s: %s", pod.name, version, message, extra={"fault": fault})
            if fault is not Fault.AWAY:
                self._backlog.clear()  # first let it be seen whether the weights are at fault
        finally:
            del self._swaps[pod.uid]
        self._changed()
        self._fill()
