"""What the parts of a round share: settings, log, registry, state, and how to reach the services."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from anyloop.config import Settings
from anyloop.log import EventLog
from anyloop.registry import Announcements, Registry
from trainer.checkpointing import SavePoint
from trainer.clients import Services
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.handover import await_serving
from trainer.join_store import JoinStore, Round
from trainer.journal import Journal

T = TypeVar("T")


@dataclass
class Report:
    """What a round has found out so far."""

    seconds: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class RoundContext:
    settings: Settings
    trainer: TrainerSettings
    log: EventLog
    registry: Registry
    store: JoinStore
    journal: Journal
    world: World
    announcements: Announcements

    def serving(self, lineage: str) -> str:
        """The version that should serve; the imported base before the first promotion."""
        version = self.announcements.serving(lineage)
        return version or self.registry.import_base(lineage, self.settings.model_dir).version

    @property
    def training_folder(self) -> Path:
        """Where trainings under way keep their checkpoints; of no use once a round is closed."""
        return self.settings.home / "trainer" / "training"

    def save_point(self, claimed: Round, name: str) -> SavePoint:
        """For the training call `name` of a round."""
        return SavePoint(self.training_folder / claimed.key / name, self.trainer.checkpoint_every)

    def await_serving(self, lineage: str, version: str) -> None:
        timeout = self.trainer.swap_timeout_s
        self.with_services(lambda services: await_serving(services, self.announcements, lineage, version, timeout))

    def with_services(self, work: Callable[[Services], Awaitable[T]]) -> T:
        """Runs `work` with clients that are closed after it."""

        async def run() -> T:
            trainer = self.trainer
            async with Services(self.settings, trainer.concurrency, trainer.request_timeout_s) as services:
                return await work(services)

        return asyncio.run(run())
