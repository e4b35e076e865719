"""Reads prompts in pieces, between decode steps, first come first served."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.policy.engine.budget import ReadBudget
from services.policy.engine.forward import Chunk, RowCache
from services.policy.engine.prefixes import PrefixTable
from services.policy.engine.request import Request

log = logging.getLogger(__name__)


@dataclass
class ReadStep:
    """What one step of reading led to."""

    ready: list[Request] = field(default_factory=list)  # all but the last token stands in the row of their prefix
    failed: list[tuple[list[Request], Exception]] = field(default_factory=list)
    new_seconds: float = 0.0  # in forwards that read prompts of requests without an answer so far, and nothing else


class PromptReader:
    """Holds the requests that are admitted and not ready. A request's prefix is its row in the table, once it has one.

    "Prompt" is all that a request holds but its last token, which the next decode step reads: after a swap that
    recomputes, part of the answer too.
    """

    def __init__(self, prefixes: PrefixTable, budget: ReadBudget) -> None:
        self._prefixes = prefixes
        self._budget = budget
        self._requests: dict[Request, None] = {}  # in the order they came

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests))

    def __contains__(self, request: object) -> bool:
        return request in self._requests

    def add(self, request: Request) -> None:
        self._requests[request] = None

    def remove(self, request: Request) -> None:
        """Also gives its row back; what was read into it stays known. Does nothing to a request that is not here."""
        self._requests.pop(request, None)
        if request.prefix is not None:
            self._prefixes.release(request.prefix)
            request.prefix = None

    def step(self, cache: RowCache, *, somebody_waits: bool) -> ReadStep:
        """Reads on as far as the budget of one step goes. Requests that are ready stay here until `remove`."""
        done = ReadStep()
        left = self._budget.tokens(somebody_waits=somebody_waits)
        plans: dict[int, list[tuple[Request, Chunk]]] = {}  # by weights
        for request in self:
            if left <= 0:
                break
            chunk = self._next_chunk(request, left, cache)
            if chunk is not None:
                left -= len(chunk.tokens)
                plans.setdefault(id(request.weights), []).append((request, chunk))
            elif _is_ready(request):
                done.ready.append(request)
        for plan in plans.values():
            self._read(plan, cache, done)
        return done

    def _next_chunk(self, request: Request, most: int, cache: RowCache) -> Chunk | None:
        """None: nothing is left to read, or no row is free."""
        assert request.weights is not None
        if request.position == 0 or (request.prefix is None and self._prefixes.full):
            return None
        tokens = (request.prompt + request.output)[: request.position]
        if request.prefix is None:
            request.prefix = self._prefixes.begin(tokens, request.weights, cache)
        if request.prefix is None or _is_ready(request):
            return None
        known = request.prefix.known
        return Chunk(request.prefix.row, known, tokens[known : known + most])

    def _read(self, plan: list[tuple[Request, Chunk]], cache: RowCache, done: ReadStep) -> None:
        weights = plan[0][0].weights
        assert weights is not None
        began = time.perf_counter()
        try:
            weights.forward.read(cache, [chunk for _, chunk in plan])
        except Exception as error:
            log.exception("reading prompts failed", extra={"requests": len(plan)})
            for request, _ in plan:
                assert request.prefix is not None
                self._prefixes.forget(request.prefix)
            done.failed.append(([request for request, _ in plan], error))
            return
        took = time.perf_counter() - began
        self._budget.observe(sum(len(chunk.tokens) for _, chunk in plan), took)
        if not any(request.output for request, _ in plan):
            done.new_seconds += took
        for request, chunk in plan:
            assert request.prefix is not None
            request.prefix.known += len(chunk.tokens)
            if _is_ready(request):
                done.ready.append(request)


def _is_ready(request: Request) -> bool:
    return request.position == 0 or (request.prefix is not None and request.prefix.known >= request.position)
