"""Leader election by a Lease: of several controllers the holder acts, and stops before another one may begin.

Written after Kubernetes' own election: clocks of different machines are never compared. Others wait `lease_seconds` by
their own clock since they saw the last renewal; the holder gives up `renew_seconds` after its own last success, which
is sooner.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from anyloop.telemetry import metrics
from k8s import timestamps
from k8s.api import LEASES, Api, ApiError, Json
from k8s.config import ControllerSettings

logger = logging.getLogger(__name__)


class Leadership:
    """`run(lead)` calls `lead` whenever this process holds the Lease, and cancels it when it no longer does."""

    def __init__(
        self,
        api: Api,
        settings: ControllerSettings,
        namespace: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._settings = settings
        self._namespace = namespace
        self._name = settings.lease_name
        self._me = settings.holder
        self._clock = clock
        self._renewed = float("-inf")  # when this process last renewed, by its clock
        self._seen: tuple[str, str] = ("", "")  # holder and renewal that were seen last,
        self._seen_at = float("-inf")  # and when

    @property
    def held(self) -> bool:
        """False from the moment when another controller might hold the Lease soon: nothing may be changed then."""
        return self._clock() - self._renewed < self._settings.renew_seconds

    async def run(self, lead: Callable[[], Awaitable[None]]) -> None:
        """Until cancelled, or until `lead` fails (its error is raised) or returns; the Lease is given back then."""
        try:
            while True:
                while not await self._try():  # noqa: ASYNC110 - what is waited for happens on another machine
                    await asyncio.sleep(self._settings.retry_seconds)
                logger.info("holding the lease", extra={"lease": self._name, "holder": self._me})
                metrics.CONTROLLER_IS_LEADER.set(1)
                if await self._lead(lead):
                    return
                metrics.CONTROLLER_IS_LEADER.set(0)
                logger.warning("the lease is lost: nothing is changed until it is held again")
        finally:
            metrics.CONTROLLER_IS_LEADER.set(0)
            await self._release()

    async def _lead(self, lead: Callable[[], Awaitable[None]]) -> bool:
        """Renews while `lead` runs. True when `lead` returned, False when the Lease was lost."""
        leading = asyncio.ensure_future(lead())
        try:
            while self.held:
                done, _ = await asyncio.wait([leading], timeout=self._settings.retry_seconds)
                if done:
                    leading.result()
                    return True
                left = self._settings.renew_seconds - (self._clock() - self._renewed)
                try:
                    async with asyncio.timeout(max(left, 0.001)):
                        if not await self._try() and self._seen[0] not in ("", self._me):
                            self._renewed = float("-inf")  # another holds it: no need to wait for the time to pass
                except TimeoutError:
                    continue
            return False
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def _try(self) -> bool:
        """Gets or renews the Lease, where nobody else holds it."""
        asked = self._clock()
        try:
            try:
                lease = await self._api.get(LEASES, self._namespace, self._name)
            except ApiError as error:
                if not error.not_found:
                    raise
                await self._api.create(LEASES, self._namespace, self._object({}, {"leaseTransitions": 0}))
            else:
                if self._taken(lease):
                    return False
                await self._api.replace(LEASES, self._namespace, self._name, self._renewal(lease))
        except ApiError as error:
            if not error.conflict:
                logger.warning("the lease %s could not be had or renewed: %s", self._name, error)
            return False
        self._renewed = asked
        return True

    def _taken(self, lease: Json) -> bool:
        spec = lease.get("spec", {})
        seen = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()
        if seen[0] in ("", self._me):
            return False
        duration = float(spec.get("leaseDurationSeconds") or self._settings.lease_seconds)
        return self._clock() - self._seen_at < duration

    def _renewal(self, lease: Json) -> Json:
        spec = lease.get("spec", {})
        mine = spec.get("holderIdentity") == self._me
        kept = {
            "leaseTransitions": int(spec.get("leaseTransitions") or 0) + (0 if mine else 1),
            **({"acquireTime": spec["acquireTime"]} if mine and spec.get("acquireTime") else {}),
        }
        return self._object(lease["metadata"], kept)

    def _object(self, metadata: Json, spec: dict[str, Any]) -> Json:
        now = timestamps.written(time.time())
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {**metadata, "name": self._name, "namespace": self._namespace},
            "spec": {
                "acquireTime": now,
                **spec,
                "holderIdentity": self._me,
                "leaseDurationSeconds": max(1, round(self._settings.lease_seconds)),
                "renewTime": now,
            },
        }

    async def _release(self) -> None:
        """Lets another controller begin at once."""
        if not self.held:
            return
        self._renewed = float("-inf")
        try:
            async with asyncio.timeout(self._settings.retry_seconds):
                lease = await self._api.get(LEASES, self._namespace, self._name)
                if lease["spec"].get("holderIdentity") == self._me:
                    lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                    await self._api.replace(LEASES, self._namespace, self._name, lease)
        except (ApiError, TimeoutError) as error:
            logger.warning("the lease could not be given back; others wait until it runs out: %s", error)
