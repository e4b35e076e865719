"""One request: what is asked, and how far its answer is."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from services.hosts.interface import HostError
from services.policy.engine.stop_strings import StopStrings

if TYPE_CHECKING:
    from services.policy.engine.answer_masks import AnswerState
    from services.policy.engine.checkpoint import WeightSet


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 filter nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    max_tokens: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature <= 100.0:
            raise HostError("INVALID_ARGUMENT", f"temperature must be in [0, 100], not {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise HostError("INVALID_ARGUMENT", f"top_p must be in (0, 1], not {self.top_p}")
        if self.top_k < 0:
            raise HostError("INVALID_ARGUMENT", f"top_k must be 0 (off) or more, not {self.top_k}")
        if self.max_tokens < 1:
            raise HostError("INVALID_ARGUMENT", f"max_tokens must be at least 1, not {self.max_tokens}")

    @property
    def filtered(self) -> bool:
        return self.top_p < 1.0 or self.top_k > 0


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

    weights: WeightSet | None = None
    slot: int = -1
    output: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # one for each token of `output`, never fewer
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)  # only where asked for
    spans: list[tuple[str, int, int]] = field(default_factory=list)  # (version, begin, end) of output tokens
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

    def append(self, token: int, logprob: float, version: str) -> None:
        at = len(self.output)
        self.logprobs.append(logprob)  # before the token: who sees a token finds all that belongs to it
        if self.spans and self.spans[-1][0] == version:
            self.spans[-1] = (version, self.spans[-1][1], at + 1)
        else:
            self.spans.append((version, at, at + 1))
        self.output.append(token)
