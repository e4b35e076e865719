"""Log-probabilities of given outputs, beside the requests that run.

Scores are computed in slices, forwards of a few hundred tokens, on a thread of their own: the fused forward only reads
the weights. Between the decode steps on the engine's thread they would cost the streams more (32 streams of the 7 M
Llama on two busy cores, 16 k tokens scored: 659 instead of 1777 tokens/s meanwhile, gaps of up to 66 instead of 60 ms).
There they do run, one slice after each step, where a model's own module does the work: it may keep state, as rotation
tables that grow, which two threads must not share.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from services.hosts.interface import HostError
from services.hosts.program import Cancel, Send
from services.policy.engine import Engine, EngineRunner, WeightSet
from services.policy.engine.answer_masks import FREE_ROW, AnswerState, MaskTable
from services.policy.engine.forward.fused import FusedForward
from services.policy.engine.forward.interface import ScoreMasks
from services.policy.engine.not_finite import NotFinite

log = logging.getLogger(__name__)

SLICE_TOKENS = 256  # padded tokens of one forward (30 ms of the 7 M Llama); a longer sequence is a slice of its own
MAX_SEQUENCES = 256
MAX_TOKENS = 65536  # of all sequences of a call
_QUEUE = 16  # calls that may wait
_UNLIMITED = 1 << 30


@dataclass(frozen=True)
class ScoredSequence:
    prompt: list[int]
    output: list[int]
    rows: list[int]  # of the mask table, one per output token

    def __len__(self) -> int:
        return len(self.prompt) + len(self.output)


@dataclass(frozen=True)
class _Asked:
    """A sequence as it was asked for, checked. Without a `grammar` any token may follow any other."""

    prompt: list[int]
    output: list[int]
    grammar: AnswerState | None
    limit: int  # tokens that the answer could have had

    def masked(self) -> ScoredSequence:
        """Walks the grammar, token by token."""
        if self.grammar is None:
            return ScoredSequence(self.prompt, self.output, [FREE_ROW] * len(self.output))
        rows = []
        for at, token in enumerate(self.output):
            rows.append(self.grammar.row(self.limit - at))
            self.grammar.advance(token)
        return ScoredSequence(self.prompt, self.output, rows)


@dataclass(eq=False)
class _Job:
    asked: list[_Asked]
    version: str
    send: Send
    cancelled: threading.Event = field(default_factory=threading.Event)


class Scorer:
    """Runs `score` requests one after another, each in slices. `close` it before the runner."""

    def __init__(self, runner: EngineRunner, masks: MaskTable, max_tokens: int, name: str) -> None:
        """`max_tokens` bounds each sequence."""
        self._runner = runner
        self._masks = masks
        self._max_tokens = max_tokens
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._ending = threading.Lock()  # a job is either in the queue before it is emptied, or refused
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"{name}-scorer", daemon=True)
        self._thread.start()

    def submit(self, request: dict[str, Any], send: Send) -> Cancel:
        """Raises HostError INVALID_ARGUMENT, RESOURCE_EXHAUSTED; TypeError and ValueError on a malformed request."""
        job = _Job(self._sequences(request), str(request.get("version") or ""), send)
        with self._ending:
            if self._closed:
                raise _closed()
            if self._jobs.qsize() >= _QUEUE:
                raise HostError("RESOURCE_EXHAUSTED", f"{_QUEUE} score requests are waiting already; retry in a second")
            self._jobs.put(job)
        return job.cancelled.set

    def close(self) -> None:
        """Ends what waits and what runs with UNAVAILABLE, at the next slice."""
        with self._ending:
            self._closed = True
            self._jobs.put(None)
        self._thread.join(10.0)

    def _sequences(self, request: dict[str, Any]) -> list[_Asked]:
        asked = list(request["sequences"])
        if not asked:
            raise HostError("INVALID_ARGUMENT", "there are no sequences to score")
        if len(asked) > MAX_SEQUENCES:
            raise HostError("INVALID_ARGUMENT", f"{len(asked)} sequences in one call, {MAX_SEQUENCES} are allowed")
        total = sum(len(one["prompt"]) + len(one["output"]) for one in asked)  # before any token is looked at
        if total > MAX_TOKENS:
            raise HostError("INVALID_ARGUMENT", f"{total} tokens in one call, {MAX_TOKENS} are allowed: send fewer")
        return [self._sequence(i, one, bool(request.get("grammar"))) for i, one in enumerate(asked)]

    def _sequence(self, number: int, asked: dict[str, Any], grammar: bool) -> _Asked:
        prompt, output = ([int(token) for token in asked[name]] for name in ("prompt", "output"))
        where = f"sequences[{number}]"
        if not prompt or not output:
            raise HostError("INVALID_ARGUMENT", f"{where} needs a prompt and an output of at least one token each")
        if len(prompt) + len(output) > self._max_tokens:
            raise HostError(
                "INVALID_ARGUMENT",
                f"{where} has {len(prompt) + len(output)} tokens; prompt and output together hold {self._max_tokens}",
            )
        width = self._masks.rows.shape[1]
        if not all(0 <= token < width for token in (*prompt, *output)):
            raise HostError("INVALID_ARGUMENT", f"token ids of {where} must be in [0, {width})")
        if not grammar:
            return _Asked(prompt, output, None, _UNLIMITED)
        limit = int(asked.get("max_tokens") or 0) or _UNLIMITED
        if len(output) > limit:
            raise HostError("INVALID_ARGUMENT", f"{where} has {len(output)} output tokens, over its max_tokens {limit}")
        limit = min(limit, self._max_tokens - len(prompt))  # as generate cuts it
        return _Asked(prompt, output, self._masks.answer(asked.get("modalities"), limit), limit)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                answer = self._score(job)
            except HostError as error:
                answer = error.to_payload()
            except Exception as error:
                log.exception("scoring failed", extra={"sequences": len(job.asked)})
                answer = HostError("INTERNAL", f"scoring failed: {error}").to_payload()
            try:
                job.send(answer, True)
            except Exception:  # who asked has gone; those who wait have not
                log.exception("scores could not be sent", extra={"sequences": len(job.asked)})

    def _score(self, job: _Job) -> dict[str, Any]:
        sequences = [asked.masked() for asked in job.asked]
        weights = self._runner.call(lambda engine: _acquire(engine, job.version)).result()
        try:
            scores: list[np.ndarray] = [np.empty(0, np.float32)] * len(sequences)
            for part in slices([len(sequence) for sequence in sequences]):
                if self._closed:
                    raise _closed()
                if job.cancelled.is_set():
                    raise HostError("CANCELLED", "cancelled before all was scored")
                chosen = [sequences[i] for i in part]
                if _may_run_apart(weights):
                    found = score(weights, chosen, self._masks.rows)
                else:
                    found = self._runner.call(lambda _: score(weights, chosen, self._masks.rows)).result()  # noqa: B023
                for i, logprobs in zip(part, found, strict=True):
                    scores[i] = logprobs.numpy()
                    if np.isnan(scores[i]).any():
                        raise HostError("INTERNAL", f"the model failed: {NotFinite(weights.version)}", retriable=False)
        finally:
            self._runner.call(lambda engine: engine.weights.release(weights))
        return {"logprobs": scores, "version": weights.version}


def _may_run_apart(weights: WeightSet) -> bool:
    return weights.forward.kind == FusedForward.kind and not weights.options.compile


def _closed() -> HostError:
    return HostError("UNAVAILABLE", "the model is being unloaded")


def _acquire(engine: Engine, version: str) -> WeightSet:
    if not version:
        if engine.weights.serving is None:
            raise HostError("UNAVAILABLE", "no weights are active yet")
        version = engine.weights.serving.version
    return engine.weights.acquire(version)


def slices(lengths: Sequence[int]) -> list[list[int]]:
    """Indices in groups of at most `SLICE_TOKENS` padded tokens, alike lengths together."""
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if groups and (len(groups[-1]) + 1) * lengths[i] <= SLICE_TOKENS:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def score(weights: WeightSet, sequences: Sequence[ScoredSequence], masks: torch.Tensor) -> list[torch.Tensor]:
    """Float32 log-probabilities of the output tokens at temperature 1, under the mask of each."""
    tokens = [one.prompt + one.output for one in sequences]
    if any(any(one.rows) for one in sequences):
        rows = [[FREE_ROW] * (len(one.prompt) - 1) + one.rows for one in sequences]
        scores = weights.forward.score(tokens, ScoreMasks(masks, rows))
    else:
        scores = weights.forward.score(tokens)
    return [all_of_it[len(one.prompt) - 1 :] for all_of_it, one in zip(scores, sequences, strict=True)]
