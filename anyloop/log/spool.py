"""A durable local outbox: events are safe on this machine's disk at once and reach the log when it is there.

`put` returns when the event is in a segment file; one thread drains the segments in order to the log and removes them.
After a crash the next process drains what is left, and looks up in the log what may have been under way.

What an accepted event survives is the `fsync` policy's choice:

* `always`: a `put` waits until the disk has it (threads share a sync). Survives a killed process and a power failure.
* `interval`: synced every `fsync_ms`. Survives a killed process; a power failure may take the last `fsync_ms`.
* `never`: written back when the kernel likes (Linux: within half a minute). Survives a killed process only.
"""

import logging
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from anyloop.log.errors import LogError
from anyloop.log.events import Event
from anyloop.log.interface import MAX_EVENT_BYTES, EventLog, check_size
from anyloop.log.spool_drain import Sender
from anyloop.log.spool_folder import SpoolFolder
from anyloop.log.spool_segments import encode
from anyloop.telemetry import metrics

logger = logging.getLogger(__name__)

Fsync = Literal["always", "interval", "never"]

_BACKOFF_SECONDS = (0.1, 5.0)  # first and longest wait after a failed append
_LINGER_SECONDS = 0.01  # for company, and so that the thread that has just put goes on first
_SAY_SECONDS = 60.0  # between two log lines on the same trouble
_CLOSE_SECONDS = 2.0  # how long `close` waits for an append under way before it closes the log under it, and after it
_REFUSED_SECONDS = 1.0  # how long a disk that refused an event is expected to refuse the next


class SpooledWriter:
    """`log_factory` is called on the draining thread, again and again while it raises LogError: the log may be away.

    The log it returns belongs to the writer. An event that the log finds too large is kept in `rejected/` with the
    reason; none is dropped. When the draining thread itself dies, `failure` says why; `put` goes on until the bound.
    """

    def __init__(
        self,
        log_factory: Callable[[], EventLog],
        directory: Path,
        max_bytes: int = 256 * 2**20,
        *,
        fsync: Fsync = "always",
        fsync_ms: float = 100.0,
    ) -> None:
        self._log_factory = log_factory
        self._log: EventLog | None = None
        self._fsync, self._fsync_s = fsync, fsync_ms / 1000
        self._folder = SpoolFolder(directory, max_bytes, durable=fsync == "always")
        self._changed = self._folder.changed
        left = self._folder.has_more()
        self._sender = Sender(self._folder.state, self._folder.save_state, self._folder.path / "rejected", left)
        self._refused_at = float("-inf")
        self._drainer = threading.Thread(target=self._run, name="spool", daemon=True)
        self._syncer = threading.Thread(target=self._sync_now_and_then, name="spool-sync", daemon=True)
        self._stop_syncing = threading.Event()
        self.failure: BaseException | None = None
        self.log_trouble: str | None = None  # why the log takes nothing now
        self.disk_trouble: str | None = None  # why the disk took nothing when last asked

    def latest(self) -> list[Event]:
        """Before `start`: what an earlier process put last (8 MiB at most) and could not send. Raises OSError."""
        return self._folder.latest()

    def start(self) -> Self:
        """Begins to drain, beginning with what an earlier process has left."""
        metrics.LOG_SPOOL_OLDEST.set_function(self.oldest_seconds)
        self._drainer.start()
        if self._fsync == "interval":
            self._syncer.start()
        return self

    def put(self, topic: str, event: Event) -> None:
        """Accepted when it returns, as the fsync policy says. Thread-safe; blocks for the local disk only.

        Raises SpoolFull, EventTooLarge, or LogError when the disk refuses; then the event will not be sent.
        """
        check_size(event)
        frame = encode(topic, event)
        try:
            writer, end = self._folder.write(frame)
            if self._fsync == "always":
                self._folder.sync(writer, end)
        except OSError as error:
            self._refused_at = time.monotonic()
            self.disk_trouble = f"the outbox {self._folder.path} cannot be written: {error}"
            raise LogError(self.disk_trouble, retriable=True) from error
        self.disk_trouble = None

    def flush(self, timeout: float) -> bool:
        """Waits until the log has everything put so far; False when it has not within `timeout` seconds."""
        folder = self._folder
        with self._changed:
            return self._changed.wait_for(lambda: folder.pending == 0 or self.failure is not None, timeout) and (
                folder.pending == 0
            )

    @property
    def pending_bytes(self) -> int:
        """Bytes that the log has not acknowledged."""
        return self._folder.pending

    def oldest_seconds(self) -> float:
        """Age of the oldest event that the log has not acknowledged; 0 when there is none."""
        # Without the lock, under which others write to the disk: who asks must not wait for it.
        return max(0.0, time.time() - self._folder.oldest) if self._folder.pending else 0.0

    def refuses(self) -> str | None:
        """Why an event would be refused now, as far as that can be known; None when it would be taken."""
        if self._folder.pending + MAX_EVENT_BYTES // 100 > self._folder.max_bytes:
            return f"the outbox holds {self._folder.pending} bytes that the log has not taken, the most allowed"
        # Asked again after a moment: only another event shows that the disk has room again.
        return self.disk_trouble if time.monotonic() - self._refused_at < _REFUSED_SECONDS else None

    def close(self) -> None:
        """Stops draining; what is left stays on disk for the next process. Idempotent."""
        with self._changed:
            if self._folder.closed:
                return
            self._folder.closed = True
            self._changed.notify_all()
        self._stop_syncing.set()
        if self._syncer.ident is not None:
            self._syncer.join()
        if self._drainer.ident is not None:
            self._drainer.join(_CLOSE_SECONDS)
            if self._drainer.is_alive() and self._log is not None:
                self._log.close()  # ends the append under way; the next process looks up what became of it
            if self._drainer.is_alive():
                self._drainer.join(
                    _CLOSE_SECONDS
                )  # one that still tries to connect ends by itself, and changes nothing
            metrics.LOG_SPOOL_OLDEST.set_function(lambda: 0.0)
        self._folder.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        wait, longest = _BACKOFF_SECONDS
        said = float("-inf")
        try:
            while not self._folder.closed:
                try:
                    drained = self._drain()
                    wait = _BACKOFF_SECONDS[0]
                    if drained:
                        continue
                    with self._changed:
                        self._changed.wait_for(lambda: self._folder.closed or self._folder.has_more())
                    time.sleep(_LINGER_SECONDS)
                except (LogError, OSError) as error:
                    if self._folder.closed:
                        return
                    self.log_trouble = str(error)
                    if time.monotonic() - said > _SAY_SECONDS:
                        said = time.monotonic()
                        level = logging.WARNING if not isinstance(error, LogError) or error.retriable else logging.ERROR
                        logger.log(level, "%d bytes wait in the outbox: %s", self._folder.pending, error)
                    with self._changed:  # not all at once, when many have waited for the same broker
                        self._changed.wait_for(lambda: self._folder.closed, wait * random.uniform(0.5, 1.0))
                    wait = min(wait * 2, longest)
        except BaseException as error:
            logger.exception("the outbox stopped draining")
            with self._changed:
                self.failure = error
                self._changed.notify_all()
        finally:
            if self._log is not None:
                self._log.close()

    def _drain(self) -> bool:
        """Sends one batch. False when there is nothing to send."""
        batch = self._folder.batch()
        if not batch:
            return False
        if self._log is None:
            self._log = self._log_factory()
            if self._folder.closed:  # while it was opened: `close` may have missed it
                return False
        self._sender.send(self._log, batch[0][1], [event for _, _, event in batch])
        self._folder.advance(batch[-1][0])
        if self.log_trouble is not None:
            self.log_trouble = None
            logger.info("the log takes events again, %d bytes wait in the outbox", self._folder.pending)
        return True

    def _sync_now_and_then(self) -> None:
        while not self._stop_syncing.wait(self._fsync_s):
            try:
                self._folder.sync_written()
            except OSError as error:
                self.disk_trouble = f"the outbox {self._folder.path} cannot be synced: {error}"
                logger.error("%s; a power failure would take what was accepted since the last sync", self.disk_trouble)
