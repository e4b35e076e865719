"""Where answers go: each on a request of its own, or those of many streams together on one long-lived request.

A host's message has a price of its own (0.2 to 1 ms through Triton, whatever it holds), so what many streams have to
say at one time travels as one.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from services.hosts.interface import HostError
from services.hosts.program import Send
from services.policy.engine import Request


@dataclass(frozen=True, slots=True)
class Portion:
    """Tokens `[begin, end)` of a request's output, all of one version."""

    request: Request
    begin: int
    end: int
    version: str


@dataclass(frozen=True, slots=True)
class Last:
    """The last answer of a request, as it travels."""

    request: Request
    answer: dict[str, Any]


class Outlet(Protocol):
    def deliver(self, portions: Sequence[Portion], lasts: Sequence[Last]) -> None:
        """Sends what requests of this outlet have to say. A request is not heard of again after its last answer."""
        ...


class OwnAnswers(Outlet):
    """The answers of one request, on the request that asked for them."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def deliver(self, portions: Sequence[Portion], lasts: Sequence[Last]) -> None:
        for portion in portions:
            tokens, logprobs = _arrays([portion])
            answer = {"tokens": tokens, "logprobs": logprobs, "version": portion.version}
            self._send(answer | _alternatives(portion), False)
        for last in lasts:
            self._send(last.answer, True)


class Session(Outlet):
    """The answers of many streams on the request that attached: one message for all that is ready.

    A message is `{streams, counts, tokens, logprobs, versions, top, ends}`: `counts[i]` of the tokens and
    log-probabilities are those of `streams[i]`, by `versions[i]`; `ends` are pairs of a stream and its last answer.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._streams: dict[int, Request] = {}
        self._numbers: dict[Request, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def open(self, stream: int, request: Request) -> None:
        """`request` answers as `stream` from now on. Raises HostError when that is taken, or the session has ended."""
        with self._lock:
            if self._closed:
                raise HostError("UNAVAILABLE", "the session has ended: attach again")
            if stream in self._streams:
                raise HostError("INVALID_ARGUMENT", f"stream {stream} of the session is taken")
            self._streams[stream] = request
            self._numbers[request] = stream

    def request(self, stream: int) -> Request | None:
        """The request that answers as `stream`, until its last answer."""
        return self._streams.get(stream)

    def deliver(self, portions: Sequence[Portion], lasts: Sequence[Last]) -> None:
        with self._lock:
            if self._closed:
                return
            portions = [portion for portion in portions if portion.request in self._numbers]
            message: dict[str, Any] = {}
            if portions:
                tokens, logprobs = _arrays(portions)
                message = {
                    "streams": [self._numbers[portion.request] for portion in portions],
                    "counts": np.array([portion.end - portion.begin for portion in portions], np.int32),
                    "tokens": tokens,
                    "logprobs": logprobs,
                    "versions": [portion.version for portion in portions],
                }
                if any(portion.request.top_logprobs for portion in portions):
                    message["top"] = [_alternatives(portion).get("top") for portion in portions]
            ends = []
            for last in lasts:
                stream = self._numbers.pop(last.request, None)
                if stream is not None:
                    del self._streams[stream]
                    ends.append([stream, last.answer])
            if ends:
                message["ends"] = ends
            if message:
                self._send(message, False)

    def close(self, answer: dict[str, Any]) -> list[Request]:
        """Ends the request that attached with `answer`; returns the requests that had not ended."""
        with self._lock:
            if self._closed:
                return []
            self._closed = True
            left = list(self._numbers)
            self._streams.clear()
            self._numbers.clear()
        self._send(answer, True)
        return left


def _arrays(portions: Sequence[Portion]) -> tuple[np.ndarray, np.ndarray]:
    tokens = itertools.chain.from_iterable(portion.request.output[portion.begin : portion.end] for portion in portions)
    logprobs = itertools.chain.from_iterable(
        portion.request.logprobs[portion.begin : portion.end] for portion in portions
    )
    return np.fromiter(tokens, np.int32), np.fromiter(logprobs, np.float32)


def _alternatives(portion: Portion) -> dict[str, Any]:
    """`top`, one list of (token, log-probability) for each token, where they were asked for."""
    alternatives = portion.request.top_logprobs[portion.begin : portion.end]
    return {"top": alternatives} if alternatives else {}
