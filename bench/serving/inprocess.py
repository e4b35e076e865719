"""The engine in this process, driven as its program drives it: an `EngineRunner`, and a look at every step.

A client here is one line of `_Driver`: when its answer ends, its next prompt is submitted.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anyloop.config import Settings
from bench.serving.stats import Answer
from services.policy.engine import End, Engine, EngineRunner, Request, load_checkpoint
from services.policy.engine.forward import ForwardOptions
from services.policy.requests import RequestReader

VERSION = "bench"


class OpenEngine:
    """The engine of one model directory with the product's settings, its weights serving."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self.settings = settings
        self.reader = RequestReader(directory, settings.engine_max_tokens)
        layout = self.reader.sequencer.layout
        self.engine = Engine(
            settings.engine_slots,
            settings.engine_max_tokens,
            settings.engine_queue,
            self.reader.masks,
            end_token=layout.end,
            prefix_rows=settings.engine_prefix_rows,
            read_seconds=settings.engine_read_ms / 1000,
        )
        options = ForwardOptions(settings.engine_max_tokens, settings.engine_dtype, settings.engine_compile)
        weights = load_checkpoint(directory, VERSION, layout=layout, options=options)
        self.forward = weights.forward.kind
        self.engine.add_weights(weights)
        self.engine.activate(VERSION, "finish")

    def request(self, client: int, prompt: list[int], max_tokens: int, sampling: dict[str, Any]) -> Request:
        payload = {
            "prompt": prompt,
            "sampling": {**sampling, "max_tokens": max_tokens},
            "modalities": ["text"],
            "key": str(client),
        }
        return self.reader.request(payload)


class _Driver:
    """Everything but `run` happens on the engine's thread."""

    def __init__(
        self, opened: OpenEngine, prompts: list[list[int]], streams: int, max_tokens: int, sampling: Any
    ) -> None:
        self._opened = opened
        self._sampling = sampling
        self._max_tokens = max_tokens
        self._streams = streams
        self._queues = [deque(prompts[client::streams]) for client in range(streams)]
        self._live: dict[Request, tuple[int, Answer]] = {}
        self._answers: list[list[Answer]] = [[] for _ in range(streams)]
        self._done = threading.Event()

    def run(self) -> list[Answer]:
        runner = EngineRunner(self._opened.engine, self._step)
        runner.start()
        try:
            runner.call(self._begin).result()
            while not self._done.wait(1.0):
                if runner.failure is not None:
                    raise runner.failure
        finally:
            runner.close()
        return [answer for answers in self._answers for answer in answers]

    def _begin(self, engine: Engine) -> None:
        for client in range(self._streams):  # all at once, as clients that connect together do
            self._next(client)

    def _next(self, client: int) -> None:
        if self._queues[client]:
            prompt = self._queues[client].popleft()
            request = self._opened.request(client, prompt, self._max_tokens, self._sampling)
            answer = Answer(time.perf_counter())
            self._answers[client].append(answer)
            self._live[request] = (client, answer)
            self._opened.engine.submit(request)
        elif not self._live:
            self._done.set()

    def _step(self, ends: list[End]) -> None:
        now = time.perf_counter()
        for request, (_, answer) in self._live.items():
            fresh = len(request.output) - answer.tokens
            if fresh:
                answer.arrivals.append(now)
                answer.counts.append(fresh)
        for end in ends:
            client, answer = self._live.pop(end.request)
            answer.text = self._opened.reader.sequencer.decode_text(end.request.output)
            if end.error is not None or end.finished == "cancelled":
                answer.error = str(end.error or end.finished)
            self._next(client)


def measure(
    opened: OpenEngine, prompts: list[list[int]], streams: int, max_tokens: int, sampling: dict[str, Any]
) -> list[Answer]:
    """`streams` clients share `prompts`, each with one request at a time; the answers come client by client."""
    return _Driver(opened, prompts, streams, max_tokens, sampling).run()


def decode_seconds(
    opened: OpenEngine, prompts: list[list[int]], steps: int, sampling: dict[str, Any], at_least: float = 0.4
) -> float:
    """Seconds of a step that decodes one token for each of `prompts` and reads none: the median of whole answers of
    `steps` tokens, repeated for `at_least` seconds."""
    means: list[float] = []
    while sum(means) * steps < at_least:
        with decoding(opened, prompts, steps, sampling):
            began = time.perf_counter()
            for _ in range(steps):
                opened.engine.step()
            means.append((time.perf_counter() - began) / steps)
    return statistics.median(means)


@contextmanager
def decoding(opened: OpenEngine, prompts: list[list[int]], steps: int, sampling: dict[str, Any]) -> Iterator[None]:
    """One request for each of `prompts`, all past their first token and good for `steps` more."""
    # While some still read their prompts, the first ones are answered already.
    longest = opened.settings.engine_max_tokens - max(len(prompt) for prompt in prompts)
    if longest < 2 * steps:
        raise ValueError(f"{steps} steps beside the reading of prompts do not fit into {longest} tokens")
    requests = [opened.request(client, prompt, longest, sampling) for client, prompt in enumerate(prompts)]
    for request in requests:
        opened.engine.submit(request)
    while not all(request.output for request in requests):
        opened.engine.step()
    yield
    for request in requests:
        opened.engine.cancel(request)
    while opened.engine.busy:
        opened.engine.step()
