"""Which programs share a Triton model, and so a process.

Policy and critique decode all the time and get a process each. The three codecs answer in milliseconds and share one:
a process that has imported torch and transformers holds some 420 MB of its own, so two fewer save more than they cost.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.hosts.interface import MODELS

_DECODERS = "decoders"


def triton_model(model: str) -> str:
    """The Triton model that runs `model`. Raises ValueError for a name that is no model of ours."""
    if model not in MODELS:
        raise ValueError(f"no such model: {model}; the models are {', '.join(MODELS)}")
    return _DECODERS if model.startswith("decoder_") else model


def triton_models(models: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Triton model -> the programs it runs, for the given models."""
    placed: dict[str, tuple[str, ...]] = {}
    for model in models:
        placed[triton_model(model)] = (*placed.get(triton_model(model), ()), model)
    return placed
