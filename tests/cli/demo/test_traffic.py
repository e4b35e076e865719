import time
from typing import Any

from anyloop.cli.demo.traffic import Count, Request, Traffic
from anyloop.cli.rest import GatewayClient, Reply, RequestFailed


class Slow(GatewayClient):
    """Answers after a while; every third request fails."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._count = 0

    def chat(self, content: Any, **options: Any) -> Reply:
        self._count += 1
        number = self._count
        time.sleep(self._seconds)
        if number % 3 == 0:
            raise RequestFailed(503, "draining")
        return Reply("id", "policy-000000", "", (), "stop", 1)


def test_requests_are_sent_at_their_time_even_while_earlier_ones_wait() -> None:
    with Traffic(Slow(0.4), rate=20.0, seed=0) as traffic:
        time.sleep(0.6)
    # Answers alone would allow one or two in that time; twenty a second are twelve.
    assert 8 <= len(traffic.requests) <= 14


def test_every_request_is_counted_as_served_or_failed() -> None:
    with Traffic(Slow(0.0), rate=50.0, seed=0) as traffic:
        time.sleep(0.4)
    count = traffic.count()
    assert count.served + count.failed == len(traffic.requests)
    assert count.failed == len(traffic.requests) // 3


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
