"""What the sender does when a message cannot be sent: its clients hear of it, and nobody else does."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from services.policy.engine import End, Request, Sampling
from services.policy.outlets import OwnAnswers, Session
from services.policy.sender import Sender


class Pipe:
    """Its first message, and its second if it is to, cannot be sent."""

    def __init__(self, broken: int) -> None:
        self._broken = broken
        self.sent: queue.Queue[tuple[dict[str, Any], bool]] = queue.Queue()

    def send(self, answer: dict[str, Any], final: bool) -> None:
        if self._broken:
            self._broken -= 1
            raise BrokenPipeError
        self.sent.put((answer, final))


def _request(name: str) -> Request:
    return Request(name, [1], Sampling())


def test_a_session_that_missed_an_end_hears_that_it_is_over() -> None:
    pipe, cancelled = Pipe(broken=1), queue.SimpleQueue[list[Request]]()
    sender, session = Sender("test", 0.01, cancelled.put), Session(pipe.send)
    ended, running = _request("a"), _request("b")
    for stream, request in enumerate((ended, running)):
        session.open(stream, request)
        sender.open(request, session)
    sender.step([End(ended, finished="stop")])
    answer, final = pipe.sent.get(timeout=10)
    sender.close()
    assert (answer["error"]["code"], final) == ("UNAVAILABLE", True)
    assert [running] in [cancelled.get(timeout=10) for _ in range(cancelled.qsize())]


@pytest.mark.parametrize("broken", [1, 2])
def test_a_broken_pipe_is_not_the_others_affair(broken: int) -> None:
    sender, bad, good = Sender("test", 0.01, lambda requests: None), Pipe(broken), Pipe(0)
    session, first, second = Session(bad.send), _request("a"), _request("b")
    session.open(1, first)
    sender.open(first, session)
    sender.open(second, OwnAnswers(good.send))
    sender.step([End(first, finished="stop")])
    sender.step([End(second, finished="stop")])
    answer, final = good.sent.get(timeout=10)
    sender.close()
    assert (answer["finished"], final) == ("stop", True)
