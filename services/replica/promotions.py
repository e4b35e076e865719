"""Keeps the serving weights at what the log promoted, whatever happens to the host: desired against actual, again and
again. What cannot be verified is refused once, loudly, and the last good weights go on serving."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from anyloop.log import EventLog
from anyloop.registry import CheckpointWatcher
from protos.anyloop.v1 import events_pb2
from services.hosts.interface import HostError, ModelHost
from services.replica.weights import SwapMode, Switch, Weights, is_lasting

logger = logging.getLogger(__name__)


class WatcherStopped(Exception):
    """The checkpoints topic can no longer be followed: this replica would never see another promotion."""


class Promotions:
    """`run()` follows the topic until cancelled. `set_serving` hears whether verified weights answer."""

    def __init__(
        self,
        host: ModelHost,
        weights: Weights,
        set_serving: Callable[[bool], Awaitable[None]],
        poll_seconds: float = 1.0,
    ) -> None:
        self._host = host
        self._weights = weights
        self._set_serving = set_serving
        self._poll_seconds = poll_seconds
        self._wake = asyncio.Event()
        self._switching = asyncio.Lock()  # a look must not take an operator's half-done switch for a strayed host
        self._by_hand: set[asyncio.Task[Switch]] = set()
        self._refused = ""
        self._good = ""
        self._serving = False
        self._announced: dict[str, str] = {}  # version -> digest of its weights, as the log promoted it
        self._passing = ""  # the last fault that may pass: said once, not at every look
        self.wanted = ""  # the newest promotion, or what an operator activated after it
        self.failure = ""  # why the wanted version does not serve; empty when it does

    async def run(self, log: EventLog) -> None:
        """Raises WatcherStopped."""
        loop = asyncio.get_running_loop()

        def promoted(event: events_pb2.CheckpointEvent) -> None:
            loop.call_soon_threadsafe(self._want, event.version, event.digest)

        watcher = CheckpointWatcher(log, promoted, lineages=(self._weights.lineage,)).start()
        try:
            while True:
                self._wake.clear()
                await self.reconcile()
                if not watcher.alive:
                    raise WatcherStopped(f"the checkpoints topic cannot be followed: {watcher.failure}")
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await asyncio.to_thread(watcher.close)

    @property
    def good(self) -> str:
        """The version that was verified last; empty before the first."""
        return self._good

    def begin_with(self, version: str) -> None:
        """What to serve until the log names a promotion."""
        self._want(version)

    async def activate(self, version: str, mode: SwapMode) -> Switch:
        """By an operator's hand: stands until the next promotion. Raises as `Weights.activate`.

        Who asked may go away meanwhile: the host finishes what it has begun, and this must know what it serves then.
        """
        task = asyncio.create_task(self._activate(version, mode))
        self._by_hand.add(task)
        task.add_done_callback(self._by_hand.discard)
        return await asyncio.shield(task)

    async def _activate(self, version: str, mode: SwapMode) -> Switch:
        async with self._switching:
            switch = await self._weights.activate(version, mode, self._announced.get(version, ""))
            self.wanted = self._good = version
            self.failure = self._refused = ""
            await self._say(True)
        return switch

    async def reconcile(self) -> None:
        """One look: activates the wanted version where another one serves, or one that was not verified here yet."""
        async with self._switching:
            await self._look()

    async def _look(self) -> None:
        if not await self._host.ready():
            await self._say(False)
            return
        try:
            actual = (await self._weights.state()).serving
            if actual != self._good:  # an engine that was built again holds no weights until they are loaded
                await self._say(False)
            for version in dict.fromkeys((self.wanted, self._good)):
                if version and version == actual == self._good:
                    break
                if version and version != self._refused and await self._try(version):
                    actual = version
                    break
        except HostError as error:
            logger.warning("the model host does not answer: %s", error)
            await self._say(False)
            return
        await self._say(bool(self._good) and actual == self._good)

    def _want(self, version: str, digest: str = "") -> None:
        self._announced = {self._good: self._announced.get(self._good, ""), version: digest}
        self.wanted = version
        self.failure = self._refused = ""
        self._wake.set()

    async def _try(self, version: str) -> bool:
        wanted = self.wanted
        try:
            await self._weights.activate(version, digest=self._announced.get(version, ""))
        except Exception as error:
            if not is_lasting(error):
                if str(error) != self._passing:
                    logger.warning("%s could not be switched in, trying again: %s", version, error)
                self._passing = str(error)
            elif self.wanted == wanted:
                self._refused = version
                logger.error("%s is refused; %s goes on serving: %s", version, self._good or "nothing", error)
            if version == wanted == self.wanted:
                self.failure = f"{version}: {error}"
            return False
        self._good, self._passing = version, ""
        if version == self.wanted:
            self.failure = ""
        return True

    async def _say(self, serving: bool) -> None:
        if serving != self._serving:
            self._serving = serving
            logger.info("serving %s", self._good) if serving else logger.warning("not serving")
        await self._set_serving(serving)
