"""The engine's thread: everything that touches the engine happens on it, between two steps."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from services.hosts.interface import HostError
from services.policy.engine.engine import End, Engine

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
    step, with the requests that ended in it."""

    def __init__(self, engine: Engine, emit: Callable[[list[End]], None], name: str = "engine") -> None:
        self._engine = engine
        self._emit = emit
        self._inbox: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ending = threading.Lock()  # a call is either in the inbox before the thread empties it, or refused
        self._closed = False
        self.failure: BaseException | None = None

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
        try:
            while self._drain():
                self._emit(self._engine.step())
        except BaseException as error:
            log.exception("the engine thread died")
            self.failure = error
        with self._ending:
            self._closed = True
        try:
            self._engine.abort_all(self._stopped())
            self._emit(self._engine.take_ends())
        finally:
            while not self._inbox.empty():  # nobody will step again: what these calls ask for would hang
                call = self._inbox.get()
                if call is not None:
                    call.future.set_exception(self._stopped())

    def _drain(self) -> bool:
        """Runs what waits in the inbox; sleeps on it when there is nothing else to do. False: stop."""
        while True:
            try:
                call = self._inbox.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if call is None:
                return False
            call.run(self._engine)

    def _stopped(self) -> HostError:
        why = f": {self.failure}" if self.failure is not None else ""
        return HostError("UNAVAILABLE", f"the engine has stopped{why}")
