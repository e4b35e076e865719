"""The engine's thread: what is asked of it is answered, also while it ends."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from itertools import pairwise

import pytest

from services.hosts.interface import HostError
from services.policy.engine import EngineRunner
from services.policy.engine.engine import End, Engine


class DyingEngine(Engine):
    """Its only step waits for `die` and raises."""

    def __init__(self) -> None:
        super().__init__(slots=1, max_tokens=16, queue=1)
        self.stepping, self.die = threading.Event(), threading.Event()

    @property
    def busy(self) -> bool:
        return True

    def step(self) -> list[End]:
        self.stepping.set()
        self.die.wait(10)
        raise RuntimeError("the step broke")


def _refusal(future: Future[str]) -> str:
    with pytest.raises(HostError) as refused:
        future.result(timeout=10)
    assert refused.value.code == "UNAVAILABLE"
    return refused.value.message


def test_calls_that_come_while_the_thread_dies_are_refused_and_never_run() -> None:
    engine, ran = DyingEngine(), []
    runner = EngineRunner(engine, lambda ends: None)
    runner.start()
    assert engine.stepping.wait(10)
    during = runner.call(lambda _: ran.append("during") or "ran")
    engine.die.set()
    assert _refusal(during) == "the engine has stopped: the step broke"
    assert _refusal(runner.call(lambda _: ran.append("after") or "ran")) == "the engine has stopped: the step broke"
    assert ran == []
    runner.close()


def test_a_closed_runner_refuses() -> None:
    runner = EngineRunner(Engine(slots=1, max_tokens=16, queue=1), lambda ends: None)
    runner.start()
    assert runner.call(lambda engine: engine.max_tokens).result(timeout=10) == 16
    runner.close()
    runner.close()
    assert _refusal(runner.call(lambda _: "ran")) == "the engine has stopped"


def test_a_runner_that_can_build_an_engine_goes_on_with_the_next_one() -> None:
    dying = DyingEngine()
    runner = EngineRunner(dying, lambda emissions: None, rebuild=lambda: Engine(slots=1, max_tokens=24, queue=1))
    runner.start()
    assert dying.stepping.wait(10)
    during = runner.call(lambda _: "ran")
    dying.die.set()
    assert _refusal(during) == "the engine has stopped: the step broke"
    assert runner.call(lambda engine: engine.max_tokens).result(timeout=10) == 24
    runner.close()


def test_a_runner_whose_engine_cannot_be_built_again_refuses() -> None:
    def no_memory() -> Engine:
        raise MemoryError

    dying = DyingEngine()
    runner = EngineRunner(dying, lambda emissions: None, rebuild=no_memory)
    runner.start()
    dying.die.set()
    runner._thread.join(10)
    assert "the engine has stopped" in _refusal(runner.call(lambda _: "ran"))


def test_calls_that_follow_each_other_leave_room_for_steps() -> None:
    class Counting(Engine):
        steps = 0

        @property
        def busy(self) -> bool:
            return True

        def step(self) -> list[End]:
            self.steps += 1
            return []

    engine = Counting(slots=1, max_tokens=16, queue=1)
    runner = EngineRunner(engine, lambda emissions: None)
    seen: list[int] = []
    done = threading.Event()

    def again(_: Engine) -> None:
        seen.append(engine.steps)
        if len(seen) < 20:
            runner.call(again)
        else:
            done.set()

    runner.call(again)
    runner.start()
    assert done.wait(10)
    runner.close()
    assert all(later > earlier for earlier, later in pairwise(seen))
