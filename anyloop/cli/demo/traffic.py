"""Steady traffic of other users while the loop learns: what swaps must not disturb."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from anyloop.cli.demo.asking import content_of
from anyloop.cli.rest import GatewayClient
from anyloop.world import SUBTASKS, tasks

_WORKERS = 16


@dataclass(frozen=True)
class Request:
    """One request of the traffic; times are Unix seconds. `error` is empty when it was answered whole."""

    begun: float
    ended: float
    version: str
    error: str


@dataclass(frozen=True)
class Count:
    served: int
    failed: int


class Traffic:
    """Sends `rate` requests a second, in all subtasks, whether or not the earlier ones have been answered.

    Requests are logged like anybody's, but nobody criticises their answers.
    """

    def __init__(self, client: GatewayClient, rate: float, seed: int) -> None:
        self._client = client
        self._rate = rate
        self._rng = np.random.default_rng([seed, 7])
        self._requests: list[Request] = []
        self._under_way: dict[int, float] = {}  # when each began, Unix seconds
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="traffic")
        self._clock = threading.Thread(target=self._run, name="traffic-clock", daemon=True)

    def __enter__(self) -> "Traffic":
        if self._rate > 0:
            self._clock.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Sends no more and waits for what is under way. Idempotent."""
        self._ended.set()
        if self._clock.ident is not None:
            self._clock.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def requests(self) -> Sequence[Request]:
        with self._lock:
            return list(self._requests)

    def count(self, begin: float = 0.0, end: float = float("inf")) -> Count:
        """Requests that were under way at some moment between `begin` and `end` (Unix seconds)."""
        within = [request for request in self.requests if request.begun <= end and request.ended >= begin]
        failed = sum(bool(request.error) for request in within)
        return Count(len(within) - failed, failed)

    def settled(self, begin: float, end: float, timeout: float = 150.0) -> Count:
        """As `count`, once the requests that began in time have ended; one that has not by the timeout has failed."""
        deadline = time.monotonic() + timeout
        while (waiting := self._begun_by(end)) and time.monotonic() < deadline:
            time.sleep(0.05)
        count = self.count(begin, end)
        return Count(count.served, count.failed + waiting)

    def _begun_by(self, end: float) -> int:
        with self._lock:
            return sum(begun <= end for begun in self._under_way.values())

    def _run(self) -> None:
        due = time.monotonic()
        number = 0
        while not self._ended.wait(max(0.0, due - time.monotonic())):
            subtask = SUBTASKS[int(self._rng.integers(len(SUBTASKS)))]
            task, seed = tasks.sample(subtask, "train", self._rng), int(self._rng.integers(2**31))
            self._pool.submit(self._one, number, task, seed)
            number += 1
            due += 1.0 / self._rate

    def _one(self, number: int, task: tasks.Task, seed: int) -> None:
        begun = time.time()
        version = error = ""
        with self._lock:
            self._under_way[number] = begun
        try:
            reply = self._client.chat(content_of(task), modalities=[str(m) for m in task.modalities], seed=seed)
            version = reply.version
            for part in reply.media:
                self._client.fetch(part.url)
        except Exception as failure:  # whatever a user would have seen instead of an answer
            error = str(failure) or type(failure).__name__
        with self._lock:
            del self._under_way[number]
            self._requests.append(Request(begun, time.time(), version, error))
