"""How far the learner is behind the log, told also while a round takes minutes and nothing is polled."""

import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from anyloop.log import EventLog
from anyloop.telemetry import metrics
from trainer.failures import is_away

log = logging.getLogger(__name__)

_PATIENCE_S = 5.0


class LagMeter:
    """Sets `anyloop_log_lag` every `every_s` seconds, on a thread and with a log of its own, from entering to leaving.

    While the log is away the gauge stays as it is.
    """

    def __init__(
        self, open_own_log: Callable[[], EventLog], group: str, topics: Sequence[str], every_s: float = 5.0
    ) -> None:
        self._open, self._group, self._topics, self._every_s = open_own_log, group, topics, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lag meter", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The thread closes its log. It is not waited for where a log that is away holds it up: it ends with the
        process."""
        self._stop.set()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        with self._open() as event_log:
            while not self._stop.is_set():
                try:
                    for topic in self._topics:
                        metrics.LOG_LAG.labels(self._group, topic).set(event_log.lag(self._group, [topic]))
                except Exception as error:
                    if not is_away(error):
                        log.exception("anyloop_log_lag stands still from here on")
                        return
                    log.info("the lag is not known: %s", error)
                self._stop.wait(self._every_s)
