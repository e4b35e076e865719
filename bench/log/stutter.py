"""A broker that answers late: it is stopped for 200 ms at a time."""

from __future__ import annotations

import threading

from anyloop.cli.kafka.broker import LocalBroker

_ASLEEP_S, _AWAKE_S = 0.2, 0.05


class Stutter:
    """From `start` to `stop`, which leaves the broker awake. Each may be called once; `stop` also without `start`."""

    def __init__(self, broker: LocalBroker) -> None:
        self._broker = broker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stutter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._broker.pause()
            try:
                self._stop.wait(_ASLEEP_S)
            finally:
                self._broker.resume()
            self._stop.wait(_AWAKE_S)
