"""One request: what is asked, and how far its answer is."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from services.hosts.interface import HostError
from services.policy.engine.stop_strings import StopStrings

if TYPE_CHECKING:
    from anyloop.telemetry.tracing import Span
    from services.policy.engine.answer_masks import AnswerState
    from services.policy.engine.checkpoint import WeightSet
    from services.policy.engine.penalties import TokenCounts
    from services.policy.engine.prefixes import Prefix


MAX_BIASED_TOKENS = 1024


_LEAST = 1e-5  # temperature and top_p; what is smaller means the likeliest token just as well


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. Temperature 0 is greedy; every other default changes nothing.

    Raises HostError INVALID_ARGUMENT, which names the value and the range, on construction.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    min_p: float = 0.0  # the least probability, as a part of the likeliest token's
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over the output
    frequency_penalty: float = 0.0  # over the output, once for each time
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    top_logprobs: int = 0  # how many alternatives are reported with each token
    seed: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if 0.0 < self.temperature < _LEAST:  # below it the arithmetic of the sampler has nothing left to divide
            object.__setattr__(self, "temperature", _LEAST)
        if 0.0 < self.top_p < _LEAST:
            object.__setattr__(self, "top_p", _LEAST)
        _check("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "in [0, 100]")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "in (0, 1]")
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or more")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "in [0, 1]")
        _check("repetition_penalty", self.repetition_penalty, 0.0 < self.repetition_penalty <= 100.0, "in (0, 100]")
        _check("presence_penalty", self.presence_penalty, -2.0 <= self.presence_penalty <= 2.0, "in [-2, 2]")
        _check("frequency_penalty", self.frequency_penalty, -2.0 <= self.frequency_penalty <= 2.0, "in [-2, 2]")
        _check("top_logprobs", self.top_logprobs, 0 <= self.top_logprobs <= 20, "in [0, 20]")
        _check("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")
        entries = len(self.logit_bias)
        _check(
            "the number of logit_bias entries", entries, entries <= MAX_BIASED_TOKENS, f"at most {MAX_BIASED_TOKENS}"
        )
        for token, bias in self.logit_bias.items():
            _check("a token id of logit_bias", token, token >= 0, "0 or more")
            _check(f"logit_bias[{token}]", bias, -100.0 <= bias <= 100.0, "in [-100, 100]")

    @cached_property
    def penalised(self) -> bool:
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @cached_property
    def adjusted(self) -> bool:
        """Whether the logits are changed before anything is drawn from them."""
        return self.penalised or bool(self.logit_bias)


def _check(name: str, value: float, within: bool, bounds: str) -> None:
    if not within:  # NaN is within nothing
        raise HostError("INVALID_ARGUMENT", f"{name} must be {bounds}, not {value}")


@dataclass(eq=False)
class Request:
    """The engine owns every field below `stop` once the request is submitted.

    `output`, `logprobs`, `top_logprobs` and `spans` only grow, on the engine's thread; others may read slices of them.
    """

    request_id: str
    prompt: list[int]
    sampling: Sampling
    key: str = ""  # who asks: waiting requests are admitted in turn by key
    pin: str = ""  # answer with this resident version; empty is the serving one
    answer: AnswerState | None = None  # None: any token may follow any other
    stop: StopStrings | None = None
    span: Span | None = None  # of its trace, where it has one

    weights: WeightSet | None = None
    prefix: Prefix | None = None  # the row that its prompt is read into
    slot: int = -1  # its decode row
    mixed: bool = False  # its keys and values come from two versions of the weights
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # one for each token of `output`, never fewer
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)  # only where asked for
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # (version, begin, end) of output tokens
    counts: TokenCounts | None = None  # made by the sampler for requests with penalties
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        # One generator per request: what a seed gives does not depend on who else is in the batch.
        self.rng = random.Random(self.sampling.seed)

    @property
    def remaining(self) -> int:
        return self.sampling.max_tokens - len(self.output)

    @property
    def last_token(self) -> int:
        return self.output[-1] if self.output else self.prompt[-1]

    @property
    def position(self) -> int:
        """Where `last_token` stands in the sequence: the place the next decode step writes to."""
        return len(self.prompt) + len(self.output) - 1

    def append(self, token: int, logprob: float, version: str, top: list[tuple[int, float]] | None = None) -> None:
        """Adds a token. `top`: the alternatives at its place, for a request that asked for them."""
        at = len(self.output)
        if at == 0 and self.span is not None:
            self.span.event("gen_ai.first_token")
        if top is not None:
            self.top_logprobs.append(top)
        self.logprobs.append(logprob)  # before the token: who sees a token finds all that belongs to it
        if self.spans and self.spans[-1][0] == version:
            self.spans[-1] = (version, self.spans[-1][1], at + 1)
        else:
            self.spans.append((version, at, at + 1))
        self.output.append(token)
