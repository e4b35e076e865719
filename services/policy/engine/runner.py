"""The engine's thread: everything that touches the engine happens on it, between two steps."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from services.hosts.interface import HostError
from services.policy.engine.engine import End, Engine
from services.policy.engine.step_gaps import StepGaps

log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Call:
    action: Callable[[Engine], Any]
    future: Future[Any]

    def run(self, engine: Engine) -> None:
        try:
            self.future.set_result(self.action(engine))
        except BaseException as error:
            self.future.set_exception(error)


class EngineRunner:
    """Runs steps while there is work, and calls from other threads in between. `emit` is called after every
    step, with the requests that ended in it.

    A step that raises ends the engine, and every request and call with it. `rebuild` then makes the next engine, which
    holds no weights until somebody loads them; without `rebuild` the runner has ended.
    """

    def __init__(
        self,
        engine: Engine,
        emit: Callable[[list[End]], None],
        name: str = "engine",
        rebuild: Callable[[], Engine] | None = None,
    ) -> None:
        self._engine = engine
        self._emit = emit
        self._rebuild = rebuild
        self._inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ending = threading.Lock()  # a call is either in the inbox before the thread empties it, or refused
        self._closed = False
        self.failure: BaseException | None = None  # what the last engine died of
        self.gaps = StepGaps()

    def start(self) -> None:
        self._thread.start()

    def call(self, action: Callable[[Engine], Result]) -> Future[Result]:
        """Runs `action` on the engine's thread between two steps; HostError UNAVAILABLE once that has ended."""
        future: Future[Result] = Future()
        with self._ending:
            ended = self._closed
            if not ended:
                self._inbox.put(_Call(action, future))
        if ended:
            future.set_exception(self._stopped())
        return future

    def close(self, timeout: float = 10.0) -> None:
        """Ends every request with UNAVAILABLE and stops the thread."""
        with self._ending:
            self._closed = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._steps_until_closed():
            assert self._rebuild is not None
            try:
                self._engine = self._rebuild()
            except BaseException:
                log.exception("the engine cannot be built again")
                with self._ending:
                    self._closed = True
                self._refuse_calls()
                return

    def _steps_until_closed(self) -> bool:
        """False when the engine died and another one may take its place."""
        try:
            while self._drain():
                self._emit(self._engine.step())
                engine = self._engine
                self.gaps.step(time.perf_counter(), engine.busy, engine.reading_seconds, decoded=engine.decoded)
        except BaseException as error:
            log.exception("the engine died")
            self.failure = error.with_traceback(None)  # its frames hold the dead engine's cache
        else:
            self.failure = None
        final = self.failure is None or self._rebuild is None
        if final:
            with self._ending:
                self._closed = True
        self._end_requests()
        self._refuse_calls()
        return final

    def _end_requests(self) -> None:
        engine, stopped = self._engine, self._stopped()
        try:
            engine.abort_all(stopped)
        except BaseException:  # it died half-way through a change of its own; whoever waits must hear of it
            log.exception("the engine could not be cleared")
            self._emit([End(request, error=stopped) for request in [*engine.running, *engine.reading, *engine.waiting]])
        self._emit(engine.take_ends())

    def _refuse_calls(self) -> None:
        """Nobody will step this engine again: what the calls in the inbox ask of it would hang."""
        while not self._inbox.empty():
            call = self._inbox.get()
            if call is None:
                self._inbox.put(None)  # it is for the next engine, too
                return
            call.future.set_exception(self._stopped())

    def _drain(self) -> bool:
        """Runs what waits in the inbox, and no more: calls that come one after another leave room for steps between
        them. Sleeps on the inbox when there is nothing else to do. False: stop."""
        waiting = self._inbox.qsize()
        while waiting > 0 or not self._engine.busy:
            call = self._inbox.get()
            if call is None:
                return False
            call.run(self._engine)
            waiting -= 1
        return True

    def _stopped(self) -> HostError:
        why = f": {self.failure}" if self.failure is not None else ""
        return HostError("UNAVAILABLE", f"the engine has stopped{why}")
