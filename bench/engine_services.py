"""The serving engine in the caller's own process, with the methods that the trainer asks of the services.

No threads, no transport: the caller's thread steps the engine until every answer is there. Tokens and logged
log-probabilities are those that the services would give; what costs nothing here is the way to them.
"""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anyloop.modality import Modality
from services.policy.engine import Engine, Request, load_checkpoint
from services.policy.engine.forward import ForwardOptions
from services.policy.requests import RequestReader
from services.policy.scoring import ScoredSequence, score, slices
from trainer.clients import Sample, SampleRequest
from trainer.publish import stored_weights, write_checkpoint

_QUEUE = 1 << 20


class ServingEngine:
    """Answers of resident versions of one model. `model` gives tokenizer, layout, and the architecture."""

    def __init__(self, model: Path, slots: int = 64, max_tokens: int = 512) -> None:
        self.reader = RequestReader(model, max_tokens)
        self.sequencer = self.reader.sequencer
        self._options = ForwardOptions(max_tokens, "float32", False)
        self._engine = Engine(
            slots, max_tokens, _QUEUE, self.reader.masks, end_token=self.sequencer.layout.end, prefix_rows=16
        )

    def load(self, version: str, directory: Path, serve: bool = True) -> None:
        """Makes a checkpoint resident under a name; `serve`: answers requests that name no version."""
        like = self._engine.weights.serving
        weights = load_checkpoint(directory, version, like=like, layout=self.sequencer.layout, options=self._options)
        self._engine.add_weights(weights)
        if serve:
            self._engine.activate(version, "finish")

    def unload(self, version: str) -> None:
        self._engine.weights.unload(version)

    def generate(self, requests: Sequence[SampleRequest]) -> list[Sample]:
        """All answers, in order. The same requests give the same answers, whatever else is asked beside them."""
        asked = [self._request(request) for request in requests]
        for one in asked:
            self._engine.submit(one)
        waiting = len(asked)
        while waiting:
            for end in self._engine.step():
                if end.error is not None:
                    raise end.error
                waiting -= 1
        end_token = self.sequencer.layout.end
        return [
            Sample(tuple(one.output), tuple(one.logprobs), one.spans[0][0], one.output[-1] == end_token)
            for one in asked
        ]

    @torch.inference_mode()
    def score(self, asked: Sequence[tuple[SampleRequest, Sequence[int]]], version: str = "") -> list[tuple[float, ...]]:
        """Log-probabilities of given answers, as the engine logs them."""
        serving = self._engine.weights.serving
        assert serving is not None
        weights = self._engine.weights.acquire(version or serving.version)
        try:
            sequences = [self._masked(request, list(tokens)) for request, tokens in asked]
            scores: list[tuple[float, ...]] = [()] * len(sequences)
            for part in slices([len(sequence) for sequence in sequences]):
                found = score(weights, [sequences[i] for i in part], self.reader.masks.rows)
                for i, logprobs in zip(part, found, strict=True):
                    scores[i] = tuple(logprobs.tolist())
        finally:
            self._engine.weights.release(weights)
        return scores

    def _request(self, request: SampleRequest) -> Request:
        sampling: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
        }
        modalities = [str(modality) for modality in request.modalities] or None
        return self.reader.request(
            {"prompt": request.prompt, "sampling": sampling, "modalities": modalities, "version": request.version}
        )

    def _masked(self, request: SampleRequest, tokens: list[int]) -> ScoredSequence:
        """Walks the grammar of `request` over its answer."""
        modalities = [str(modality) for modality in request.modalities] or None
        grammar = self.reader.masks.answer(modalities, request.max_tokens)
        rows = []
        for at, token in enumerate(tokens):
            rows.append(grammar.row(request.max_tokens - at))
            grammar.advance(token)
        return ScoredSequence(list(request.prompt), tokens, rows)


class EngineServices:
    """Stands for the policy and critique services towards the trainer's functions.

    Requests that are made concurrently are answered in one go, by the engine of their model.
    """

    def __init__(self, policy: ServingEngine, critic: ServingEngine) -> None:
        self.policy, self.critic = policy, critic
        self._waiting: list[tuple[ServingEngine, SampleRequest, asyncio.Future[Sample]]] = []
        self._flush: asyncio.Task[None] | None = None

    async def sample(self, request: SampleRequest) -> Sample:
        return await self._ask(self.policy, request)

    async def critique(self, request: SampleRequest) -> str:
        sample = await self._ask(self.critic, replace(request, modalities=(Modality.TEXT,)))
        segments = self.critic.sequencer.parse(sample.tokens)
        return "".join(segment for segment in segments if isinstance(segment, str)).strip()

    async def score(
        self, asked: Sequence[tuple[SampleRequest, Sequence[int]]], version: str
    ) -> list[tuple[float, ...]]:
        return self.policy.score(asked, version)

    async def _ask(self, engine: ServingEngine, request: SampleRequest) -> Sample:
        future: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self._waiting.append((engine, request, future))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._answer_all())
        return await future

    async def _answer_all(self) -> None:
        await asyncio.sleep(0.01)  # everybody who asks now comes into the same batch
        while self._waiting:
            taken, self._waiting = self._waiting, []
            for engine in dict.fromkeys(engine for engine, _, _ in taken):
                mine = [(request, future) for wanted, request, future in taken if wanted is engine]
                try:
                    samples = engine.generate([request for request, _ in mine])
                except Exception as error:
                    for _, future in mine:
                        future.set_exception(error)
                    continue
                for (_, future), sample in zip(mine, samples, strict=True):
                    future.set_result(sample)


class Checkpoints:
    """A folder of plain checkpoints, each the base's files with new weights."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> Path:
        """Writes a model's whole `tensors` as checkpoint `name`; one of that name is replaced."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_checkpoint(folder, self.base, stored_weights(self.base, tensors))
        return folder
