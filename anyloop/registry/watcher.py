"""Follows the announcements on a thread of its own."""

import logging
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

from anyloop.log import CHECKPOINTS, EventLog, LogError
from anyloop.registry.announce import PROMOTED, checkpoint_events
from protos.anyloop.v1 import events_pb2

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_RETRY_SECONDS = 1.0
_SAY_SECONDS = 60.0  # between two log lines on a log that is away


class CheckpointWatcher:
    """Calls `callback` for announcements, in order, one at a time.

    First with the newest announcement that matches, per lineage (or none), then with every later one. An exception of
    the callback is logged and the watcher goes on. When the watcher itself cannot go on, it stops and `failure` says
    why; a retriable LogError only makes it wait. Each watcher sees everything: there is no consumer group.
    """

    def __init__(
        self,
        log: EventLog,
        callback: Callable[[events_pb2.CheckpointEvent], None],
        *,
        lineages: Collection[str] = ("policy", "critique"),
        states: Collection[int] = (PROMOTED,),
        from_latest: bool = True,
    ) -> None:
        self._log = log
        self._callback = callback
        self._lineages = frozenset(lineages)
        self._states = frozenset(states)
        self._from_latest = from_latest
        self._next_offset = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoint-watcher", daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> Self:
        self._thread.start()
        return self

    def close(self) -> None:
        """Returns when a running callback has ended."""
        self._stop.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        first = self._from_latest
        said = float("-inf")
        while not self._stop.is_set():
            try:
                events = self._fetch()
            except LogError as error:
                if not error.retriable:
                    logger.error("checkpoint watcher stopped: %s", error)
                    self.failure = error
                    return
                if time.monotonic() - said > _SAY_SECONDS:
                    said = time.monotonic()
                    logger.warning("checkpoint watcher waits for the log: %s", error)
                self._stop.wait(_RETRY_SECONDS)
                continue
            except Exception as error:
                logger.exception("checkpoint watcher stopped")
                self.failure = error
                return
            for event in _newest_per_lineage(events) if first else events:
                if self._stop.is_set():
                    return
                self._deliver(event)
            first = False
            self._stop.wait(_POLL_SECONDS)

    def _fetch(self) -> list[events_pb2.CheckpointEvent]:
        end = self._log.end_offsets(CHECKPOINTS)[0]
        if end < self._next_offset:
            logger.warning("the topic of announcements was made anew: it is read from its start")
            self._next_offset = 0
        if end == self._next_offset:
            return []
        found = [
            (offset, event)
            for offset, event in checkpoint_events(self._log, offset=self._next_offset)
            if offset < end and event.lineage in self._lineages and event.state in self._states
        ]
        self._next_offset = end
        return [event for _, event in found]

    def _deliver(self, event: events_pb2.CheckpointEvent) -> None:
        try:
            self._callback(event)
        except Exception:
            logger.exception("handling the announcement of %s failed", event.version)


def _newest_per_lineage(events: list[events_pb2.CheckpointEvent]) -> list[events_pb2.CheckpointEvent]:
    newest = {event.lineage: index for index, event in enumerate(events)}
    return [events[index] for index in sorted(newest.values())]
