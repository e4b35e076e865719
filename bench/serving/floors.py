"""What no engine of this kind can be faster than, or should not be slower than: forward passes and matmuls alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

SECONDS = 0.4  # every figure is a median over so long, after a first time that does not count


@torch.inference_mode()
def hugging_face_forward(model: PreTrainedModel, batch: int, prompt_tokens: int, steps: int) -> dict[str, float]:
    """Tokens per second of `model(input_ids=[batch, 1], past_key_values=DynamicCache)`, and with the prompts' pass too.

    Nothing is chosen and nothing is sent: the same token goes in at every step.
    """
    prompts = torch.full((batch, prompt_tokens), 7)
    token = torch.full((batch, 1), 7)
    reading: list[float] = []
    decoding: list[float] = []
    while sum(decoding[1:]) < SECONDS:
        cache = DynamicCache(config=model.config)
        began = time.perf_counter()
        model(input_ids=prompts, past_key_values=cache, use_cache=True, logits_to_keep=1)
        read = time.perf_counter()
        for _ in range(steps):
            model(input_ids=token, past_key_values=cache, use_cache=True)
        reading.append(read - began)
        decoding.append(time.perf_counter() - read)
    tokens, decode, read = steps * batch, statistics.median(decoding[1:]), statistics.median(reading[1:])
    return {"decode": tokens / decode, "with_prompts": tokens / (decode + read)}


@torch.inference_mode()
def matmuls(model: PreTrainedModel, batch: int, prompt_tokens: int, steps: int) -> dict[str, float]:
    """Tokens per second of every weight matrix of one decode step (`lm_head` included), by torch's own matmul (`mkl`)
    and by oneDNN on weights laid out for it beforehand (`onednn`, two to three times faster on AMD). One thread.

    `with_prompts` counts reading the prompts as well, for which the faster of the two also multiplies whole prompts.
    """
    weights = [module.weight.detach() for module in model.modules() if isinstance(module, torch.nn.Linear)]
    head = model.get_output_embeddings().weight
    if not any(weight is head for weight in weights):
        weights.append(head)
    plain = batch / _seconds(_plain(weights, batch))
    packed = batch / _seconds(_packed(weights, batch))
    rows = batch * prompt_tokens
    without_head = [weight for weight in weights if weight.data_ptr() != head.data_ptr()]
    reading = min(_seconds(_plain(without_head, rows)), _seconds(_packed(without_head, rows)))
    tokens = batch * steps
    return {"mkl": plain, "onednn": packed, "with_prompts": tokens / (tokens / max(plain, packed) + reading)}


def _plain(weights: list[torch.Tensor], rows: int) -> Callable[[], None]:
    inputs = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}

    def step() -> None:
        for weight in weights:
            functional.linear(inputs[weight.shape[1]], weight)

    return step


def _packed(weights: list[torch.Tensor], rows: int) -> Callable[[], None]:
    inputs = {size: torch.randn(rows, size) for size in {weight.shape[1] for weight in weights}}
    ops = torch.ops.mkldnn
    laid_out = [(ops._reorder_linear_weight(weight, rows), inputs[weight.shape[1]]) for weight in weights]

    def step() -> None:
        for weight, given in laid_out:
            ops._linear_pointwise(given, weight, None, "none", [], "")

    return step


def _seconds(step: Callable[[], None]) -> float:
    """The median time of a step, over `SECONDS` of them."""
    step()
    times: list[float] = []
    until = time.perf_counter() + SECONDS
    while (began := time.perf_counter()) < until:
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times)
