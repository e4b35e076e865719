import itertools
import threading
import time
from typing import Any

import pytest

from anyloop.cli.demo.traffic import Count, Request, Traffic
from anyloop.cli.rest import GatewayClient, Reply, RequestFailed


class Slow(GatewayClient):
    """Answers after a while; every third request fails."""

    def __init__(self, seconds: float, failure: Exception | None = None) -> None:
        self._seconds = seconds
        self._failure = failure or RequestFailed(503, "draining")
        self._numbers = itertools.count(1)  # one step of it is atomic

    def chat(self, content: Any, **options: Any) -> Reply:
        number = next(self._numbers)
        time.sleep(self._seconds)
        if number % 3 == 0:
            raise self._failure
        return Reply("id", "policy-000000", "", (), "stop", 1)


class Meeting(GatewayClient):
    """Answers nobody before five ask at the same time."""

    def __init__(self) -> None:
        self.asking = 0
        self.met = threading.Event()

    def chat(self, content: Any, **options: Any) -> Reply:
        self.asking += 1
        if self.asking >= 5:
            self.met.set()
        self.met.wait(20)
        return Reply("id", "policy-000000", "", (), "stop", 1)


def test_requests_are_sent_at_their_time_even_while_earlier_ones_wait() -> None:
    gateway = Meeting()
    begun = time.monotonic()
    with Traffic(gateway, rate=20.0, seed=0) as traffic:
        assert gateway.met.wait(20)
        asked, elapsed = gateway.asking, time.monotonic() - begun
    assert asked <= 20.0 * elapsed + 2
    assert all(not request.error for request in traffic.requests)


@pytest.mark.parametrize("failure", [RequestFailed(503, "draining"), ValueError("half a JSON document")])
def test_every_request_is_counted_as_served_or_failed(failure: Exception) -> None:
    gateway = Slow(0.0, failure)
    with Traffic(gateway, rate=50.0, seed=0) as traffic:
        time.sleep(0.4)
    count = traffic.count()
    sent = next(gateway._numbers) - 1
    assert count == Count(served=sent - sent // 3, failed=sent // 3)


def test_a_window_is_counted_when_what_began_in_it_has_ended() -> None:
    gateway = Slow(0.5)
    with Traffic(gateway, rate=20.0, seed=0) as traffic:
        while not (begun := traffic._begun_by(time.time())):
            time.sleep(0.01)
        end = time.time()
        assert traffic.count(0.0, end) == Count(0, 0)
        settled = traffic.settled(0.0, end)
        assert settled.served + settled.failed >= begun
        assert traffic.settled(0.0, time.time(), timeout=0.0).failed > 0, "what hangs has failed"


def test_no_rate_is_no_traffic() -> None:
    with Traffic(Slow(0.0), rate=0.0, seed=0) as traffic:
        time.sleep(0.05)
    assert traffic.requests == []


def test_a_window_counts_what_was_under_way_in_it() -> None:
    traffic = Traffic(Slow(0.0), rate=0.0, seed=0)
    traffic._requests = [
        Request(1.0, 2.0, "a", ""),
        Request(2.5, 6.0, "a", ""),
        Request(4.0, 4.5, "b", "draining"),
        Request(7.0, 8.0, "b", ""),
    ]
    assert traffic.count(3.0, 5.0) == Count(served=1, failed=1)
    assert traffic.count() == Count(served=3, failed=1)
    traffic.stop()
