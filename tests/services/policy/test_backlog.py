"""When tokens go out: the first and the last at once, the others in company, never later than the interval."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from services.hosts.interface import HostError
from services.policy.backlog import Backlog
from services.policy.engine import End, Request, Sampling
from services.policy.outlets import OwnAnswers, Session


def _outlet() -> OwnAnswers:
    return OwnAnswers(lambda payload, final: None)


def _request(tokens: int = 0, version: str = "v0") -> Request:
    request = Request("r", [1], Sampling())
    _grow(request, tokens, version)
    return request


def _grow(request: Request, tokens: int = 1, version: str = "v0") -> None:
    for _ in range(tokens):
        request.append(len(request.output), -0.5, version)


def _flowing(streams: int, interval_s: float) -> tuple[Backlog, list[Request], Session]:
    """A session whose streams have sent their first token before, and their second at 10.0."""
    backlog, session = Backlog(interval_s), Session(lambda payload, final: None)
    requests = [_request(1) for _ in range(streams)]
    for request in requests:
        backlog.open(request, session)
    backlog.take([], 9.0)
    for request in requests:
        _grow(request)
    due, _ = backlog.take([], 10.0)
    assert len(due[session].portions) == streams
    return backlog, requests, session


def test_a_first_token_goes_out_at_once_and_alone() -> None:
    backlog, requests, _ = _flowing(32, 0.025)
    new, outlet = _request(1), _outlet()
    backlog.open(new, outlet)
    _grow(requests[0])
    due, wait = backlog.take([], 10.001)
    assert list(due) == [outlet]
    assert wait is not None
    assert 0.023 < wait < 0.025


def test_tokens_of_many_streams_wait_for_company_and_leave_together() -> None:
    backlog, requests, session = _flowing(32, 0.025)
    for request in requests:
        _grow(request, 4)
    assert backlog.take([], 10.024)[0] == {}
    due, wait = backlog.take([], 10.0251)
    assert [(portion.begin, portion.end) for portion in due[session].portions] == [(2, 6)] * 32
    assert wait is None


def test_few_streams_wait_less_by_the_portions_that_can_be_carried() -> None:
    for streams, within in ((1, 0.001), (8, 0.008), (20, 0.020)):
        backlog, requests, session = _flowing(streams, 0.025)
        _grow(requests[0])
        assert backlog.take([], 10.0 + within - 0.0005)[0] == {}
        assert session in backlog.take([], 10.0 + within + 0.0001)[0]


def test_an_end_goes_out_at_once_with_the_tokens_before_it() -> None:
    backlog, requests, session = _flowing(32, 0.025)
    _grow(requests[3], 2)
    due, _ = backlog.take([End(requests[3], finished="stop")], 10.001)
    (portion,), (last,) = due[session].portions, due[session].lasts
    assert (portion.request, portion.begin, portion.end) == (requests[3], 2, 4)
    assert (last.answer["finished"], last.answer["version_spans"]) == ("stop", [["v0", 0, 4]])
    assert not backlog.is_live(requests[3])
    assert backlog.take([End(requests[3], finished="stop")], 10.002)[0] == {}  # once is enough


def test_an_error_is_the_last_answer() -> None:
    backlog, request, outlet = Backlog(0.025), _request(), _outlet()
    backlog.open(request, outlet)
    error = HostError("RESOURCE_EXHAUSTED", "full", retry_after_s=3.0)
    due, _ = backlog.take([End(request, error=error)], 1.0)
    assert [last.answer for last in due[outlet].lasts] == [error.to_payload()]


def test_a_portion_has_one_version() -> None:
    backlog, request, outlet = Backlog(0.025), _request(2, "v0"), _outlet()
    _grow(request, 3, "v1")
    backlog.open(request, outlet)
    due, _ = backlog.take([], 1.0)
    assert [(p.version, p.begin, p.end) for p in due[outlet].portions] == [("v0", 0, 2), ("v1", 2, 5)]


def test_waiting_requests_do_not_slow_the_running_ones() -> None:
    backlog, requests, session = _flowing(1, 0.025)
    for _ in range(100):
        backlog.open(_request(), session)
    _grow(requests[0])
    assert session in backlog.take([], 10.0015)[0]


def test_a_request_is_silent_until_its_first_token_whenever_it_is_opened() -> None:
    """Also between any two instructions of a `take` on the other thread."""
    for at in itertools.count():
        backlog, new, waiting, outlet = Backlog(0.025), _request(), _request(), _outlet()
        backlog.open(waiting, outlet)
        if not _during(at, lambda b=backlog, n=new, o=outlet: b.open(n, o), lambda b=backlog: b.take([], 1.0)):  # type: ignore[misc]
            break
        _grow(waiting)
        backlog.take([], 2.0)
        assert backlog.silent
        _grow(new)
        backlog.take([], 3.0)
        assert not backlog.silent
    assert at > 50


def _during(at: int, intrude: Callable[[], object], action: Callable[[], object]) -> bool:
    """Runs `action`, and `intrude` before the instruction `at` of `Backlog.take`. False: it has not that many."""
    left = at
    done = False

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left, done
        if frame.f_code is not Backlog.take.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left < 0 and not done:
                done = True
                intrude()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return done


def test_who_ended_without_a_token_is_not_silent() -> None:
    backlog, request = Backlog(0.025), _request()
    backlog.open(request, _outlet())
    assert backlog.silent
    backlog.take([End(request, finished="cancelled")], 1.0)
    assert not backlog.silent
