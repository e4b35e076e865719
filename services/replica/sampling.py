"""Sampling parameters: checked, and filled in from the checkpoint's generation_config.json."""

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from protos.anyloop.v1 import types_pb2
from services.rpc.errors import invalid

MAX_TEMPERATURE = 2.0
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True)
class SamplingDefaults:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 0  # 0: what fits

    @classmethod
    def from_pretrained(cls, directory: Path) -> Self:
        """A checkpoint without generation_config.json samples at temperature 1, unfiltered."""
        path = directory / "generation_config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        temperature = config.get("temperature")
        if config.get("do_sample") is False:
            temperature = 0.0
        return cls(
            temperature=1.0 if temperature is None else float(temperature),
            top_p=float(config.get("top_p") or 1.0),
            top_k=int(config.get("top_k") or 0),
            max_tokens=int(config.get("max_new_tokens") or 0),
        )


def resolve(
    asked: types_pb2.SamplingParams, defaults: SamplingDefaults, prompt_tokens: int, capacity: int
) -> types_pb2.SamplingParams:
    """Every field set, `max_tokens` cut to what the prompt leaves of `capacity`, a seed drawn where none was given.

    Raises RpcError INVALID_ARGUMENT on a value out of range and on a prompt that leaves no room for an answer.
    """
    room = capacity - prompt_tokens
    if room < 1:
        raise invalid(
            f"the prompt takes {prompt_tokens} tokens and this model holds {capacity} for prompt and answer together: "
            "shorten the conversation or send fewer media"
        )
    temperature = asked.temperature if asked.HasField("temperature") else defaults.temperature
    if not (math.isfinite(temperature) and 0.0 <= temperature <= MAX_TEMPERATURE):
        raise invalid(f"temperature is {temperature:g}; it must be between 0 (greedy) and {MAX_TEMPERATURE:g}")
    top_p = asked.top_p if asked.HasField("top_p") else defaults.top_p
    if not (math.isfinite(top_p) and 0.0 < top_p <= 1.0):
        raise invalid(f"top_p is {top_p:g}; it must be above 0 and at most 1 (1 keeps every token)")
    top_k = asked.top_k if asked.HasField("top_k") else defaults.top_k
    if top_k < 0:
        raise invalid(f"top_k is {top_k}; it must be 0 (keeps every token) or more")
    max_tokens = asked.max_tokens if asked.HasField("max_tokens") else defaults.max_tokens or room
    if max_tokens < 1:
        raise invalid(f"max_tokens is {max_tokens}; it must be at least 1")
    _check_stops(list(asked.stop))
    return types_pb2.SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        # JSON numbers are exact to 53 bits, and a drawn seed may be read back from the log as one.
        seed=asked.seed if asked.HasField("seed") else random.getrandbits(53),
        max_tokens=min(max_tokens, room),
        stop=asked.stop,
    )


def _check_stops(stops: list[str]) -> None:
    if len(stops) > MAX_STOPS:
        raise invalid(f"{len(stops)} stop strings were given; at most {MAX_STOPS} are allowed")
    if any(not stop or len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        raise invalid(f"a stop string must have 1 to {MAX_STOP_CHARACTERS} characters")


def to_host(sampling: types_pb2.SamplingParams) -> dict[str, Any]:
    """Resolved parameters as the model program takes them."""
    return {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
    }
