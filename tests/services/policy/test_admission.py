"""Who waits, who is next, who is refused and when to come back."""

from __future__ import annotations

import pytest

from services.hosts.interface import HostError
from services.policy.engine import Request, Sampling
from services.policy.engine.admission import FairQueue


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _request(name: str, key: str = "") -> Request:
    return Request(name, [1], Sampling(), key=key)


def _filled(limit: int, keys: str, clock: Clock | None = None) -> FairQueue:
    queue = FairQueue(limit, clock or Clock())
    for number, key in enumerate(keys):
        queue.push(_request(f"{key}{number}", key))
    return queue


def test_keys_take_turns_and_a_key_keeps_its_order() -> None:
    queue = _filled(32, "aaaabbc")
    assert [queue.pop().request_id for _ in range(7)] == ["a0", "b4", "c6", "a1", "b5", "a2", "a3"]
    with pytest.raises(IndexError, match="nobody waits"):
        queue.pop()


def test_a_newcomer_waits_for_one_request_of_each_other_key_at_most() -> None:
    queue = _filled(100, "a" * 50 + "b" * 20)
    queue.push(_request("new", "c"))
    assert "new" in [queue.pop().request_id for _ in range(3)]


def test_one_key_alone_gets_four_fifths_and_another_finds_room() -> None:
    queue = FairQueue(100)
    for number in range(80):
        queue.push(_request(str(number), "greedy"))
    with pytest.raises(HostError, match="80 of your requests are waiting already") as refused:
        queue.push(_request("80", "greedy"))
    assert refused.value.code == "RESOURCE_EXHAUSTED"
    for number in range(10):
        queue.push(_request(f"b{number}", "modest"))
    with pytest.raises(HostError, match="of your requests"):
        queue.push(_request("again", "greedy"))
    assert len(queue) == 90


def test_the_limit_holds_whoever_asks() -> None:
    queue = FairQueue(4)
    for key in "abcd":
        queue.push(_request(key, key))
    with pytest.raises(HostError, match="4 requests are waiting already"):
        queue.push(_request("e", "e"))


def test_a_queue_of_one_place_takes_one() -> None:
    queue = _filled(1, "a")
    with pytest.raises(HostError):
        queue.push(_request("b", "b"))
    assert queue.pop().request_id == "a0"
    queue.push(_request("b", "b"))


def test_a_removed_request_is_gone_and_its_place_free() -> None:
    queue = _filled(8, "aab")
    first, second, other = list(queue)
    queue.remove(second)
    assert second not in queue
    assert [queue.pop(), queue.pop()] == [first, other]
    with pytest.raises(ValueError):
        queue.remove(other)
    assert len(queue) == 0


def test_clearing_leaves_nobody() -> None:
    queue = _filled(8, "aab")
    queue.clear()
    assert (len(queue), list(queue)) == (0, [])


def test_the_way_back_is_estimated_from_how_fast_the_queue_drains() -> None:
    clock = Clock()
    queue = _filled(4, "abcd", clock)
    for name in ("e", "f"):  # one leaves every two seconds, another takes its place
        clock.now += 2.0
        queue.pop()
        queue.push(_request(name, name))
    with pytest.raises(HostError) as refused:
        queue.push(_request("g", "g"))
    assert refused.value.retry_after_s == pytest.approx(8.0)  # four wait, each takes two seconds


def test_the_estimate_stays_between_a_second_and_a_minute() -> None:
    clock = Clock()
    queue = _filled(4, "abcd", clock)

    def estimate() -> float | None:
        with pytest.raises(HostError) as refused:
            queue.push(_request("x", "x"))
        return refused.value.retry_after_s

    assert estimate() == 1.0  # nothing has left yet
    clock.now += 0.001
    queue.pop()
    queue.push(_request("e", "e"))
    assert estimate() == 1.0
    clock.now += 3600.0  # stuck
    assert estimate() == 60.0
    assert HostError.from_payload(HostError("X", "m", retry_after_s=2.5).to_payload()["error"]).retry_after_s == 2.5


def test_an_idle_hour_says_nothing_about_the_next_rush() -> None:
    clock = Clock()
    queue = _filled(2, "a", clock)
    clock.now += 0.1
    queue.pop()
    clock.now += 3600.0
    for key in "ab":
        queue.push(_request(key, key))
    clock.now += 1.0
    queue.pop()
    queue.push(_request("c", "c"))
    with pytest.raises(HostError) as refused:
        queue.push(_request("d", "d"))
    assert refused.value.retry_after_s == pytest.approx(2.0)
