"""The engine's core: one `step()` admits waiting requests, reads their prompts and decodes one token for each.

Not thread-safe and without a clock or a thread of its own: `EngineRunner` owns one and calls it. The rows in use are
always the first ones of the cache; when a request leaves, the last row takes its place.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from services.hosts.interface import HostError
from services.policy.engine.admission import FairQueue
from services.policy.engine.answer_masks import FREE_ROW, MaskTable
from services.policy.engine.checkpoint import WeightSet
from services.policy.engine.request import Request
from services.policy.engine.sampler import TopLogprobs, sample
from services.policy.engine.slot_cache import SlotCache
from services.policy.engine.weights import WeightStore

log = logging.getLogger(__name__)

SwapMode = Literal["finish", "keep", "recompute"]
PREFILL_TOKENS = 2048  # padded prompt tokens per forward: bounds memory, and how long running requests wait


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
    ) -> None:
        """`max_tokens` bounds prompt plus answer. `end_token` closes an answer; None: only max_tokens does."""
        self._slots = slots
        self.max_tokens = max_tokens
        self._masks = masks
        self._end = end_token
        self.weights = WeightStore()
        self._cache: SlotCache | None = None
        self.running: list[Request] = []  # index = slot
        self.waiting = FairQueue(queue)
        self._left: list[End] = []  # ends that happened between two steps

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
        elif request.slot < 0:
            return
        self._finish(request)
        self._left.append(End(request, finished="cancelled"))

    def abort_all(self, error: HostError) -> None:
        """Ends every request with `error`."""
        for request in [*self.running, *self.waiting]:
            self._finish(request)
            self._left.append(End(request, error=error))
        self.waiting.clear()

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting or self._left)

    # -- weights -------------------------------------------------------------------------------------------------

    def add_weights(self, weights: WeightSet) -> None:
        """Makes a loaded version resident; it answers pinned requests until it is activated."""
        if self._cache is None:
            self._cache = _new_cache(weights.model, self._slots, self.max_tokens)
            try:
                self._forward_prompts(weights, [[0, 0]], [0])  # allocates the cache before the first request does
            except Exception as error:
                self._cache = None
                raise HostError("FAILED_PRECONDITION", f"{weights.version} does not run: {error}") from error
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
            moved = [r for r in self.running if r.weights is previous and not r.pin]
            for request in moved:
                request.weights = self.weights.acquire(serving.version)
                self.weights.release(previous)
            if mode == "recompute":
                self._recompute(moved)
        return (previous.version if previous is not None else ""), time.perf_counter() - began

    def _recompute(self, moved: list[Request]) -> None:
        try:
            self._read_prompts(moved)
        except Exception as error:  # half old, half new: to go on with such a cache would garble the answers
            log.exception("recomputing the cache failed", extra={"requests": len(moved)})
            self._left.extend(self._fail(moved, error))

    # -- one step ------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def step(self) -> list[End]:
        """Admits, decodes one token per running request, and returns which requests ended."""
        self._admit()
        ends: list[End] = []
        for group in self._groups():
            try:
                ends.extend(self._decode(group))
            except Exception as error:  # a failing forward ends its requests, not the engine
                log.exception("decode step failed", extra={"requests": len(group)})
                ends.extend(self._fail(group, error))
        for end in ends:
            if end.finished:
                self._finish(end.request)
        return self.take_ends() + ends

    def take_ends(self) -> list[End]:
        """The ends that came between two steps; `step` returns them too."""
        left, self._left = self._left, []
        return left

    def _admit(self) -> None:
        admitted: list[Request] = []
        while self.waiting and len(self.running) < self._slots:
            request = self.waiting.pop()
            if request.weights is None:
                assert self.weights.serving is not None
                request.weights = self.weights.acquire(self.weights.serving.version)
            request.slot = len(self.running)
            self.running.append(request)
            admitted.append(request)
        try:
            self._read_prompts(admitted)
        except Exception as error:
            log.exception("reading prompts failed", extra={"requests": len(admitted)})
            self._left.extend(self._fail(admitted, error))

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
        positions = torch.tensor([r.position for r in group])
        width = max(r.position for r in group) + 1
        cache.plan_decode([r.slot for r in group], positions, width)
        logits = (
            weights.model(
                input_ids=torch.tensor([[r.last_token] for r in group]),
                attention_mask=_decode_masks(weights.model.config, positions, width),
                position_ids=positions[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            .logits[:, -1]
            .float()
        )
        if self._masks is not None:
            rows = [r.answer.row(r.remaining) if r.answer is not None else FREE_ROW for r in group]
            logits = logits + self._masks.rows[rows]
        draws = sample(logits, group)
        advanced = [self._advance(*one, weights.version) for one in zip(group, *draws, strict=True)]
        return [End(request, finished) for request, finished in zip(group, advanced, strict=True) if finished]

    def _advance(self, request: Request, token: int, logprob: float, top: TopLogprobs | None, version: str) -> str:
        """Adds a token to the answer; says how it ended the answer, or ""."""
        request.append(token, logprob, version, top)
        if request.answer is not None:
            request.answer.advance(token)
        if token == self._end or (request.stop is not None and request.stop.feed(token)):
            return "stop"
        return "length" if request.remaining == 0 else ""

    # -- prompts -------------------------------------------------------------------------------------------------

    def _read_prompts(self, requests: list[Request]) -> None:
        """Fills the rows of `requests` with all they hold but the last token, which the next decode step reads."""
        batches: list[list[Request]] = []
        for request in sorted(requests, key=lambda r: (id(r.weights), r.position)):  # alike lengths: little padding
            last = batches[-1] if batches else []
            if request.position == 0:
                continue
            if last and last[0].weights is request.weights and (len(last) + 1) * request.position <= PREFILL_TOKENS:
                last.append(request)
            else:
                batches.append([request])
        for batch in batches:
            weights = batch[0].weights
            assert weights is not None
            self._forward_prompts(weights, [(r.prompt + r.output)[:-1] for r in batch], [r.slot for r in batch])

    @torch.inference_mode()
    def _forward_prompts(self, weights: WeightSet, prompts: list[list[int]], rows: list[int]) -> None:
        assert self._cache is not None
        longest = max(len(prompt) for prompt in prompts)
        # Padding stands on the right, behind everything that attends: the causal mask alone hides it.
        padded = torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts])
        self._cache.plan_prefill(rows)
        weights.model(
            input_ids=padded,
            position_ids=torch.arange(longest).expand(len(prompts), -1),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )

    # -- ends ----------------------------------------------------------------------------------------------------

    def _finish(self, request: Request) -> None:
        """Frees the slot; the last row moves into it."""
        if request.slot >= 0:
            last = self.running.pop()
            if last is not request:
                assert self._cache is not None
                self._cache.move(last.slot, request.slot, last.position)
                last.slot = request.slot
                self.running[request.slot] = last
            request.slot = -1
        if request.weights is not None:
            self.weights.release(request.weights)
            request.weights = None

    def _fail(self, requests: list[Request], cause: Exception) -> list[End]:
        error = HostError("INTERNAL", f"the model failed: {cause}", retriable=False)
        for request in requests:
            self._finish(request)
        return [End(request, error=error) for request in requests]


def _new_cache(model: Any, slots: int, length: int) -> SlotCache:
    config = model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or length
    if longest < length:
        raise HostError(
            "FAILED_PRECONDITION",
            f"the model reads {longest} tokens at most: set ANYLOOP_ENGINE_MAX_TOKENS to that or less, not {length}",
        )
    return SlotCache(config.num_hidden_layers, slots, length)


def _decode_masks(config: Any, positions: torch.Tensor, width: int) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive masks `[batch, 1, 1, width]`: a row sees its own past, within the window where layers have one."""
    config = config.get_text_config()
    columns = torch.arange(width)
    past = columns <= positions[:, None]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())

    def additive(seen: torch.Tensor) -> torch.Tensor:
        hidden = torch.zeros(seen.shape).masked_fill_(~seen, torch.finfo(torch.float32).min)
        return hidden[:, None, None, :]

    if not window or (kinds and "sliding_attention" not in kinds):
        return additive(past)
    sliding = additive(past & (columns > positions[:, None] - window))
    if len(kinds) > 1:
        return {"full_attention": additive(past), "sliding_attention": sliding}
    return sliding
