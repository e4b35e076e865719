"""The engine's thread: everything that touches the engine happens on it, between two steps."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from services.hosts.interface import HostError
from services.policy.engine.engine import Emission, Engine

log = logging.getLogger(__name__)
Result = TypeVar("Result")


class EngineRunner:
    """Runs steps while there is work, and calls from other threads in between. `emit` gets what each step made."""

    def __init__(self, engine: Engine, emit: Callable[[list[Emission]], None], name: str = "engine") -> None:
        self._engine = engine
        self._emit = emit
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._closed = False
        self.failure: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def call(self, action: Callable[[Engine], Result]) -> Future[Result]:
        """Runs `action` on the engine's thread between two steps."""
        future: Future[Result] = Future()

        def run() -> None:
            try:
                future.set_result(action(self._engine))
            except BaseException as error:
                future.set_exception(error)

        if self._closed or self.failure is not None:
            future.set_exception(HostError("UNAVAILABLE", f"the engine has stopped{self._why()}"))
        else:
            self._inbox.put(run)
        return future

    def close(self, timeout: float = 10.0) -> None:
        """Ends every request with UNAVAILABLE and stops the thread."""
        if not self._closed:
            self._closed = True
            self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        try:
            while self._drain():
                emissions = self._engine.step()
                if emissions:
                    self._emit(emissions)
        except BaseException as error:
            log.exception("the engine thread died")
            self.failure = error
        self._engine.abort_all(HostError("UNAVAILABLE", f"the engine has stopped{self._why()}"))
        self._emit(self._engine.take_ends())
        while not self._inbox.empty():  # calls that came while the thread ended fail instead of hanging
            action = self._inbox.get()
            if action is not None:
                action()

    def _drain(self) -> bool:
        """Runs what waits in the inbox; sleeps on it when there is nothing else to do. False: stop."""
        while True:
            try:
                action = self._inbox.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if action is None:
                return False
            action()

    def _why(self) -> str:
        return f": {self.failure}" if self.failure is not None else ""
