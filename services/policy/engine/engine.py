"""The engine's core: one `step()` admits waiting requests, reads a piece of their prompts and decodes one token for
each that is ready.

Not thread-safe and without a thread of its own: `EngineRunner` owns one and calls it. A request waits in the queue,
then reads its prompt into a row of the prefix table, then runs in a decode row. Decode rows in use are always the
first ones of the cache; when a request leaves, the last row takes its place.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Literal

import torch

from services.hosts.interface import HostError
from services.policy.engine.admission import FairQueue
from services.policy.engine.answer_masks import FREE_ROW, MaskTable
from services.policy.engine.budget import ReadBudget
from services.policy.engine.checkpoint import WeightSet
from services.policy.engine.forward import RowCache
from services.policy.engine.not_finite import NotFinite, Scrubber, without_numbers
from services.policy.engine.prefixes import PrefixTable
from services.policy.engine.reading import PromptReader
from services.policy.engine.request import Request
from services.policy.engine.sampler import TopLogprobs, sample
from services.policy.engine.weights import WeightStore

log = logging.getLogger(__name__)

SwapMode = Literal["finish", "keep", "recompute"]


@dataclass(slots=True)
class End:
    """Why a request ended: `finished` is "stop", "length" or "cancelled", or else there is an `error`."""

    request: Request
    finished: str = ""
    error: HostError | None = None


class Engine:
    def __init__(
        self,
        slots: int,
        max_tokens: int,
        queue: int,
        masks: MaskTable | None = None,
        end_token: int | None = None,
        prefix_rows: int = 8,
        read_seconds: float = 0.02,
    ) -> None:
        """`max_tokens` bounds prompt plus answer. `end_token` closes an answer; None: only max_tokens does.

        `prefix_rows` prompts are read, or remembered, at a time. While answers run, a step spends at most about
        `read_seconds` on prompts.
        """
        self._slots = slots
        self.max_tokens = max_tokens
        self._masks = masks
        self._end = end_token
        self._prefix_rows = prefix_rows
        self.weights = WeightStore()
        self.prefixes = PrefixTable(slots, prefix_rows)
        self.reading = PromptReader(self.prefixes, ReadBudget(read_seconds))
        self._cache: RowCache | None = None
        self.forward_kind = ""  # of the forwards that share the cache
        self.running: list[Request] = []  # index = decode row
        self.waiting = FairQueue(queue)
        self._scrubber = Scrubber(self.prefixes)
        self._left: list[End] = []  # ends that happened between two steps
        self.reading_seconds = 0.0  # of the last step, what it spent on the prompts of new requests
        self.decoded = False  # the last step had answers to go on with

    # -- requests ------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues a request. Raises HostError: queue full, prompt too long, version not resident, nothing serving."""
        if not request.prompt:
            raise HostError("INVALID_ARGUMENT", "the prompt is empty")
        if len(request.prompt) + request.sampling.max_tokens > self.max_tokens:
            raise HostError(
                "INVALID_ARGUMENT",
                f"a prompt of {len(request.prompt)} tokens and an answer of {request.sampling.max_tokens} exceed "
                f"{self.max_tokens} tokens (ANYLOOP_ENGINE_MAX_TOKENS): shorten the conversation",
            )
        if request.pin:
            request.weights = self.weights.acquire(request.pin)
        elif self.weights.serving is None:
            raise HostError("UNAVAILABLE", "no weights are active yet")
        try:
            self.waiting.push(request)
        except HostError:
            self._finish(request)
            raise

    def cancel(self, request: Request) -> None:
        """Ends a request before the next decode step; one that has ended already is left alone."""
        if request in self.waiting:
            self.waiting.remove(request)
        elif request.slot < 0 and request not in self.reading:
            return
        self._finish(request)
        self._left.append(End(request, finished="cancelled"))

    def abort_all(self, error: HostError) -> None:
        """Ends every request with `error`."""
        for request in [*self.running, *self.reading, *self.waiting]:
            self._finish(request)
            self._left.append(End(request, error=error))
        self.waiting.clear()

    @property
    def busy(self) -> bool:
        return bool(self.running or self.reading or self.waiting or self._left)

    # -- weights -------------------------------------------------------------------------------------------------

    @property
    def cache_bytes(self) -> int:
        """Of all rows, for running and for remembered sequences; 0 before the first weights."""
        return self._cache.nbytes if self._cache is not None else 0

    def add_weights(self, weights: WeightSet) -> None:
        """Makes a loaded version resident; it answers pinned requests until it is activated."""
        forward = weights.forward
        if forward.max_length < self.max_tokens:
            raise HostError(
                "FAILED_PRECONDITION",
                f"the model reads {forward.max_length} tokens at most: set ANYLOOP_ENGINE_MAX_TOKENS to that or less, "
                f"not {self.max_tokens}",
            )
        if self._cache is None:
            self._cache = forward.new_cache(self._slots + self._prefix_rows, self.max_tokens)
            self.forward_kind = forward.kind
        elif forward.kind != self.forward_kind:
            raise HostError(
                "FAILED_PRECONDITION",
                f"{weights.version} runs by the {forward.kind} forward, the resident versions by {self.forward_kind}",
            )
        self.weights.add(weights)

    def activate(self, version: str, mode: SwapMode) -> tuple[str, float]:
        """Makes a resident version the serving one, between two steps.

        Returns the previous version ("" for none) and for how many seconds no decode step could run. `finish`: requests
        end on the weights they began with. `keep` and `recompute`: requests bound to the previous version, unless
        pinned, go on with the new one, on the old KV cache or on one read anew.
        """
        began = time.perf_counter()
        previous = self.weights.activate(version)
        serving = self.weights.serving
        assert serving is not None
        if previous is not None and previous is not serving and mode != "finish":
            moved = [r for r in [*self.running, *self.reading] if r.weights is previous and not r.pin]
            for request in moved:
                request.weights = self.weights.acquire(serving.version)
                self.weights.release(previous)
            if mode == "recompute":
                self._read_anew(moved)
            else:
                for request in moved:
                    request.mixed = request.slot >= 0 or request.prefix is not None
                    if request.prefix is not None:
                        request.prefix.uid = -1
        return (previous.version if previous is not None else ""), time.perf_counter() - began

    def _read_anew(self, moved: list[Request]) -> None:
        """Sends requests back to reading: prompt and answer so far, under their new weights."""
        for request in moved:
            if request.prefix is not None:
                self.prefixes.forget(request.prefix)
            self.reading.remove(request)
            if request.slot >= 0:
                self._free_slot(request)
            self.reading.add(request)
            request.mixed = False

    # -- one step ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[End]:
        """Admits, reads, decodes one token per running request, and returns which requests ended."""
        self._admit()
        self.reading_seconds = self._read()
        self.decoded = bool(self.running)
        ends: list[End] = []
        for group in self._groups():
            try:
                ends.extend(self._decode(group))
            except Exception as error:  # a failing forward ends its requests, not the engine
                log.exception("decode step failed", extra={"requests": len(group)})
                ends.extend(self._fail(group, error))
        self._left.extend(ends)  # before the rows are freed: whatever happens there, everybody hears of their end
        for end in ends:
            if end.finished:
                self._finish(end.request)
        return self.take_ends()

    def take_ends(self) -> list[End]:
        """The ends that came between two steps; `step` returns them too."""
        left, self._left = self._left, []
        return left

    def _admit(self) -> None:
        while self.waiting and len(self.running) + len(self.reading) < self._slots:
            request = self.waiting.pop()
            if request.weights is None:
                assert self.weights.serving is not None
                request.weights = self.weights.acquire(self.weights.serving.version)
            self.reading.add(request)

    def _groups(self) -> list[list[Request]]:
        """The running requests by their weights, in slot order."""
        groups: dict[int, list[Request]] = {}
        for request in self.running:
            groups.setdefault(id(request.weights), []).append(request)
        return list(groups.values())

    def _decode(self, group: list[Request]) -> list[End]:
        group = sorted(group, key=lambda r: r.slot)  # a failed group before this one may have moved rows
        weights, cache = group[0].weights, self._cache
        assert weights is not None
        assert cache is not None
        logits = weights.forward.decode(
            cache, [r.slot for r in group], [r.last_token for r in group], [r.position for r in group]
        )
        if self._masks is not None:
            rows = [r.answer.row(r.remaining) if r.answer is not None else FREE_ROW for r in group]
            logits += self._masks.rows[rows]
        draws = sample(logits, group)
        lost = without_numbers(group, draws.logprobs)
        if lost:
            self._scrubber.broken(weights.version, cache, range(len(self.running), self._slots))
            self._left.extend(self._fail(lost, NotFinite(weights.version)))
        advanced = [
            (drawn[0], self._advance(*drawn, weights.version))
            for drawn in zip(group, *draws, strict=True)
            if not lost or drawn[0] not in lost
        ]
        return [End(request, finished) for request, finished in advanced if finished]

    def _advance(self, request: Request, token: int, logprob: float, top: TopLogprobs | None, version: str) -> str:
        """Adds a token to the answer; says how it ended the answer, or ""."""
        request.append(token, logprob, version, top)
        if request.answer is not None:
            request.answer.advance(token)
        if token == self._end or (request.stop is not None and request.stop.feed(token)):
            return "stop"
        return "length" if request.remaining == 0 else ""

    # -- prompts -------------------------------------------------------------------------------------------------

    def _read(self) -> float:
        """Returns the seconds that went into the prompts of new requests: answers that are read anew stand still."""
        if not self.reading:
            return 0.0
        assert self._cache is not None
        done = self.reading.step(self._cache, somebody_waits=bool(self.running))
        for request in done.ready:
            self._run(request)
        for requests, error in done.failed:
            self._left.extend(self._fail(requests, error))
        return done.new_seconds

    def _run(self, request: Request) -> None:
        """From reading to running: what was read moves into the next decode row."""
        assert self._cache is not None
        request.slot = len(self.running)
        self.running.append(request)
        if request.prefix is not None:
            self._cache.copy(request.prefix.row, request.slot, request.position)
        self.reading.remove(request)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, request: Request) -> None:
        """Frees all that the request holds."""
        self.reading.remove(request)
        if request.slot >= 0:
            if not request.mixed and request.output and request.weights is not None:
                assert self._cache is not None
                known = (request.prompt + request.output)[: request.position]
                self.prefixes.remember(known, request.weights, self._cache, request.slot)
            self._free_slot(request)
        if request.weights is not None:
            self.weights.release(request.weights)
            request.weights = None

    def _free_slot(self, request: Request) -> None:
        """The last row moves into the one that becomes free."""
        assert self._cache is not None
        last = self.running[-1]
        vacated = last.slot
        self._scrubber.left(self._cache, request.slot)
        if last is not request:
            self._cache.copy(last.slot, request.slot, last.position)
            last.slot = request.slot
            self.running[request.slot] = last
            self._scrubber.left(self._cache, vacated)
        self.running.pop()
        request.slot = -1

    def _fail(self, requests: list[Request], cause: Exception) -> list[End]:
        error = HostError("INTERNAL", f"the model failed: {cause}", retriable=False)
        for request in requests:
            request.mixed = True  # whatever the failed forward left in its row is not to be kept
            self._finish(request)
        return [End(request, error=error) for request in requests]
