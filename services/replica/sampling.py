"""Sampling parameters: checked, and filled in from the checkpoint's generation_config.json."""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from protos.anyloop.v1 import types_pb2
from services.rpc.errors import invalid

MAX_TEMPERATURE = 2.0
MAX_PENALTY = 2.0
MAX_REPETITION = 100.0
MAX_BIAS = 100.0
MAX_BIASED_TOKENS = 1024
MAX_ALTERNATIVES = 20
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True)
class SamplingDefaults:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 0  # 0: what fits
    min_p: float = 0.0
    repetition_penalty: float = 1.0

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
            min_p=float(config.get("min_p") or 0.0),
            repetition_penalty=float(config.get("repetition_penalty") or 1.0),
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
    top_p = asked.top_p if asked.HasField("top_p") else defaults.top_p
    top_k = asked.top_k if asked.HasField("top_k") else defaults.top_k
    max_tokens = asked.max_tokens if asked.HasField("max_tokens") else defaults.max_tokens or room
    resolved = types_pb2.SamplingParams(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=asked.min_p if asked.HasField("min_p") else defaults.min_p,
        repetition_penalty=(
            asked.repetition_penalty if asked.HasField("repetition_penalty") else defaults.repetition_penalty
        ),
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        logit_bias=asked.logit_bias,
        top_logprobs=asked.top_logprobs,
        # JSON numbers are exact to 53 bits, and a drawn seed may be read back from the log as one.
        seed=asked.seed if asked.HasField("seed") else random.getrandbits(53),
        max_tokens=max_tokens,
        stop=asked.stop,
    )
    _check(resolved)
    resolved.max_tokens = min(max_tokens, room)
    return resolved


def _check(sampling: types_pb2.SamplingParams) -> None:
    """Raises RpcError INVALID_ARGUMENT naming the value and its range. A comparison with NaN is false."""
    temperature, top_p, min_p = sampling.temperature, sampling.top_p, sampling.min_p
    if not 0.0 <= temperature <= MAX_TEMPERATURE:
        raise invalid(f"temperature is {temperature:g}; it must be between 0 (greedy) and {MAX_TEMPERATURE:g}")
    if not 0.0 < top_p <= 1.0:
        raise invalid(f"top_p is {top_p:g}; it must be above 0 and at most 1 (1 keeps every token)")
    if sampling.top_k < 0:
        raise invalid(f"top_k is {sampling.top_k}; it must be 0 (keeps every token) or more")
    if not 0.0 <= min_p <= 1.0:
        raise invalid(f"min_p is {min_p:g}; it must be between 0 (keeps every token) and 1")
    if not 0.0 < sampling.repetition_penalty <= MAX_REPETITION:
        raise invalid(
            f"repetition_penalty is {sampling.repetition_penalty:g}; "
            f"it must be above 0 and at most {MAX_REPETITION:g} (1 is off)"
        )
    for name in ("presence_penalty", "frequency_penalty"):
        penalty = getattr(sampling, name)
        if not -MAX_PENALTY <= penalty <= MAX_PENALTY:
            raise invalid(f"{name} is {penalty:g}; it must be between {-MAX_PENALTY:g} and {MAX_PENALTY:g} (0 is off)")
    if not 0 <= sampling.top_logprobs <= MAX_ALTERNATIVES:
        raise invalid(f"top_logprobs is {sampling.top_logprobs}; it must be between 0 and {MAX_ALTERNATIVES}")
    if sampling.max_tokens < 1:
        raise invalid(f"max_tokens is {sampling.max_tokens}; it must be at least 1")
    _check_bias(dict(sampling.logit_bias))
    _check_stops(list(sampling.stop))


def _check_bias(bias: dict[int, float]) -> None:
    if len(bias) > MAX_BIASED_TOKENS:
        raise invalid(f"logit_bias names {len(bias)} tokens; at most {MAX_BIASED_TOKENS} are allowed")
    for token, value in bias.items():
        if token < 0 or not -MAX_BIAS <= value <= MAX_BIAS:
            raise invalid(
                f"logit_bias gives token {token} {value:g}; token ids are 0 or more, "
                f"a bias is between {-MAX_BIAS:g} and {MAX_BIAS:g}"
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
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "logit_bias": dict(sampling.logit_bias),
        "top_logprobs": sampling.top_logprobs,
        "seed": sampling.seed,
        "max_tokens": sampling.max_tokens,
        "stop": list(sampling.stop),
    }
