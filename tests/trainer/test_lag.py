"""The lag is told while nobody polls."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from anyloop.config import Settings
from anyloop.log import FEEDBACK, Event, EventLog, LogError
from anyloop.log.sqlite_log import SqliteLog
from tests.trainer.events import feedback
from trainer.__main__ import learn
from trainer.config import TrainerSettings
from trainer.distributed import World
from trainer.intake import GROUP, TOPICS
from trainer.lag import LagMeter
from trainer.learner import Learner


def lag() -> float | None:
    return REGISTRY.get_sample_value("anyloop_log_lag", {"group": GROUP, "topic": FEEDBACK})


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def say(log: EventLog, name: str) -> None:
    log.append(FEEDBACK, Event.wrap(feedback(name, "r"), key="r", source="test", id=name))


class Watched(SqliteLog):
    """Says whether it was closed, and is away for its first questions."""

    closed_by: list[str]
    refusals = 2

    def lag(self, group: str, topics: object) -> int:
        if self.refusals:
            self.refusals -= 1
            raise LogError("broker away", retriable=True)
        return super().lag(group, topics)  # type: ignore[arg-type]

    def close(self) -> None:
        self.closed_by = [threading.current_thread().name]
        super().close()


def test_the_lag_grows_while_nobody_polls_and_survives_a_log_that_is_away(tmp_path: Path) -> None:
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        own = Watched(tmp_path / "log.db")
        with LagMeter(lambda: own, GROUP, TOPICS, every_s=0.02):
            say(log, "f0")
            until(lambda: lag() == 1)
            say(log, "f1")
            until(lambda: lag() == 2)
        assert own.closed_by == ["lag meter"]
        assert "lag meter" not in [thread.name for thread in threading.enumerate()]


def test_the_learner_tells_the_lag_during_a_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, log_url=f"sqlite:///{tmp_path}/log.db", metrics_port=0)
    with SqliteLog(tmp_path / "log.db") as log:
        log.ensure_topics()
        for number in range(7):
            say(log, f"f{number}")
        monkeypatch.setattr(Learner, "run", lambda *_: until(lambda: lag() == 7))  # as busy as in a round
        assert learn(settings, TrainerSettings(), World(), once=False) == 0
