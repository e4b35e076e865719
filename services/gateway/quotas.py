"""How much a principal may ask for: token buckets of one minute, and answers at the same time. Of this process."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from protos.anyloop.v1 import policy_pb2
from services.gateway.errors import GatewayError, Status

_BUSY_RETRY_S = 1.0  # nobody knows when a running answer ends


@dataclass
class Bucket:
    """A token bucket that holds one minute's worth."""

    capacity: float
    level: float
    updated: float

    def take(self, now: float, count: int, given_back: int = 0) -> float:
        """Takes `count`, at most what the bucket can hold; returns 0, or the seconds until they are there.

        `given_back` were taken before and are there again first, whether the `count` are granted or not.
        """
        count = min(count, int(self.capacity))
        self._refill(now, given_back)
        if self.level >= count:
            self.level -= count
            return 0.0
        return (count - self.level) * 60 / self.capacity

    def owe(self, now: float, count: int) -> None:
        """Takes what has been used already, if need be below nothing."""
        self._refill(now)
        self.level -= count

    def _refill(self, now: float, given_back: int = 0) -> None:
        self.level = min(self.capacity, self.level + given_back + (now - self.updated) * self.capacity / 60)
        self.updated = now


class Meters:
    """What each principal has used. Thread-safe. A limit that changes keeps what is left, as far as it holds that."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def take(self, principal: str, what: str, limit: int, count: int, given_back: int = 0) -> None:
        """Raises GatewayError: 429 with the seconds to wait. A limit of 0 is none."""
        if limit <= 0:
            return
        with self._lock:
            now = self._clock()
            wait = self._bucket(principal, what, limit, now).take(now, count, given_back)
        if wait:
            raise GatewayError(
                Status.RESOURCE_EXHAUSTED,
                f"over the quota of {limit} {what} a minute; try again in {wait:.1f} seconds",
                "rate_limit_exceeded",
                retry_after_s=wait,
            )

    def owe(self, principal: str, what: str, limit: int, count: int) -> None:
        """Counts what was used: who has used too much is refused by the next `take`."""
        if limit > 0:
            with self._lock:
                now = self._clock()
                self._bucket(principal, what, limit, now).owe(now, count)

    @contextmanager
    def running(self, principal: str, limit: int, count: int) -> Iterator[None]:
        """So many more at the same time, or none of them. Raises GatewayError: 429. A limit of 0 is none."""
        with self._lock:
            now_running = self._running.get(principal, 0)
            if 0 < limit < now_running + count:
                raise GatewayError(
                    Status.RESOURCE_EXHAUSTED,
                    f"{now_running} answers run for this key, and no more than {limit} may at the same time "
                    "(n choices count as n); try again when one has ended",
                    "too_many_running",
                    retry_after_s=_BUSY_RETRY_S,
                )
            self._running[principal] = now_running + count
        try:
            yield
        finally:
            with self._lock:
                self._running[principal] -= count
                if not self._running[principal]:
                    del self._running[principal]

    def _bucket(self, principal: str, what: str, limit: int, now: float) -> Bucket:
        bucket = self._buckets.setdefault((principal, what), Bucket(limit, limit, now))
        if bucket.capacity != limit:
            bucket.capacity, bucket.level = limit, min(bucket.level, limit)
        return bucket


def tokens_used(event: policy_pb2.GenerateResponse, before: int) -> int:
    """How many tokens an answer has used after this event of it."""
    kind = event.WhichOneof("event")
    if kind == "started":
        return event.started.prompt_tokens
    if kind == "text":
        return before + len(event.text.token_ids)
    usage = event.finished.usage  # with those of media, of which no event before has told
    return max(before, usage.prompt_tokens + usage.completion_tokens)
