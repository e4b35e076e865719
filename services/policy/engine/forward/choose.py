"""Picks how a model runs: the fastest way that gives what the model itself gives."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from services.policy.engine.forward.fused import FusedForward
from services.policy.engine.forward.interface import Chunk, Forward, ForwardOptions, Unsupported
from services.policy.engine.forward.transformers_forward import TransformersForward
from services.policy.engine.forward.uncached import UncachedForward

log = logging.getLogger(__name__)

_TOLERANCE = {"float32": 2e-3, "bfloat16": 0.1}  # of the largest logit
_PROBE = 24  # tokens of the sequences that a forward is tried on
_KINDS: dict[str, Callable[[PreTrainedModel, ForwardOptions], Forward]] = {
    FusedForward.kind: FusedForward,
    TransformersForward.kind: TransformersForward,
    UncachedForward.kind: UncachedForward,
}
_said: set[tuple[str, str]] = set()


class NoForward(Exception):
    """The model runs in none of the ways, or not in the one that was asked for."""


def build_forward(model: PreTrainedModel, options: ForwardOptions, kind: str = "") -> Forward:
    """The first of fused, transformers, uncached that agrees with the model's own forward on short sequences.

    `kind` asks for one of them: versions that share a cache run alike. Raises NoForward.
    """
    reasons: list[str] = []
    for name in [kind] if kind else list(_KINDS):
        for tried in [options, replace(options, compile=False)] if options.compile else [options]:
            try:
                forward = _KINDS[name](model, tried)
                if agrees(model, forward, tried):
                    if name != FusedForward.kind and options.dtype != "float32":
                        reasons.append(f"the weights stay float32, {options.dtype} is for the fused forward")
                    _say_once(type(model).__name__, name, reasons, warn=options.compile and not tried.compile)
                    return forward
                reason = "its logits are not the model's"
            except Unsupported as unsupported:
                reasons.append(f"{name}: {unsupported}")
                break
            except MemoryError:
                raise
            except Exception as error:  # whatever a foreign architecture or a compiler does here, there is another way
                if out_of_memory(error):  # says nothing about the way; the next version must run by the same one
                    raise MemoryError(str(error)) from error
                reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            reasons.append(f"{name}{', compiled' if tried.compile else ''}: {reason}")
    raise NoForward(f"{type(model).__name__} does not run: {'; '.join(reasons)}")


def out_of_memory(error: BaseException) -> bool:
    """torch raises a plain RuntimeError when the machine's memory is at an end."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


@torch.inference_mode()
def agrees(model: PreTrainedModel, forward: Forward, options: ForwardOptions) -> bool:
    """Reads two sequences in pieces, decodes two steps, and holds the logits against one plain forward."""
    vocabulary = int(model.config.get_text_config().vocab_size)
    length = min(_PROBE, forward.max_length)
    sequences = [[(7 * place + 3 * row + 1) % vocabulary for place in range(length)] for row in range(2)]
    cache: Any = forward.new_cache(3, length)
    read = [length - 2, length // 2]  # row 0 nearly whole, row 2 half: positions differ
    for first, last in ((0, length // 4), (length // 4, None)):
        chunks = [
            Chunk(2 * row, first, sequence[first : min(last or read[row], read[row])])
            for row, sequence in enumerate(sequences)
        ]
        forward.read(cache, chunks)
    expected: torch.Tensor = model(input_ids=torch.tensor(sequences), use_cache=False).logits.float()
    cache.copy(2, 1, read[1])
    for step in range(2):
        at = [read[0] + step, read[1] + step]
        found = forward.decode(cache, [0, 1], [sequences[0][at[0]], sequences[1][at[1]]], at)
        wanted = torch.stack([expected[0, at[0]], expected[1, at[1]]])
        if not bool(torch.isfinite(found).all()):
            return False
        tolerance = _TOLERANCE[options.dtype if forward.kind == FusedForward.kind else "float32"]
        if float((found - wanted).abs().max()) > tolerance * (1.0 + float(wanted.abs().max())):
            return False
    return True


def _say_once(model: str, kind: str, reasons: list[str], warn: bool) -> None:
    if (model, kind) not in _said:
        _said.add((model, kind))
        level = logging.WARNING if warn or kind == UncachedForward.kind else logging.INFO
        log.log(level, "%s runs by the %s forward%s", model, kind, f" ({'; '.join(reasons)})" if reasons else "")
