"""An answer that was sampled from a policy, with what its engine recorded: the matter of PPO and GRPO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyloop.modality import Modality
from trainer.batches import TokenSequence
from trainer.clients import ServiceError


@dataclass(frozen=True)
class Span:
    """Tokens `[begin, end)` of an answer, sampled under one version of the weights.

    `behind`: how many versions older than the weights that train now; 0 is these. `weight`: what staleness leaves.
    """

    version: str
    begin: int
    end: int
    behind: int = 0
    weight: float = 1.0


@dataclass(frozen=True)
class Rollout:
    """An answer with the log-probability that the engine recorded for each of its tokens.

    `limit`: the most tokens it might have had, 0 if unknown. `spans` cover the answer where several versions made it (a
    swap in its middle) or where they are not the weights that train now; empty: all of it is by these. `group`: the
    answers of one prompt that are compared with each other have the same. `judged`: what the reward reads of it; None:
    prompt and answer.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    logprobs: tuple[float, ...]
    modalities: tuple[Modality, ...] = ()
    limit: int = 0
    spans: tuple[Span, ...] = ()
    group: int = 0
    judged: TokenSequence | None = None

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.answer):
            raise ValueError(f"{len(self.answer)} answer tokens with {len(self.logprobs)} log-probabilities")
        if self.spans and [one.begin for one in self.spans] + [len(self.answer)] != [
            0,
            *(one.end for one in self.spans),
        ]:
            raise ValueError(f"spans {self.spans} do not cover an answer of {len(self.answer)} tokens")

    @property
    def sequence(self) -> TokenSequence:
        return TokenSequence(self.prompt, self.answer)

    @property
    def read(self) -> TokenSequence:
        """What the reward reads."""
        return self.judged or self.sequence

    @property
    def weights(self) -> Tensor:
        """`[tokens]`, 0 where a token is too old to count."""
        return torch.tensor(self._per_token([one.weight for one in self.spans], 1.0))

    @property
    def current(self) -> Tensor:
        """`[tokens]` bool, whether the weights that train now sampled it."""
        return torch.tensor(self._per_token([one.behind == 0 for one in self.spans], True))

    def _per_token(self, values: Sequence[float], default: float) -> list[float]:
        if not self.spans:
            return [default] * len(self.answer)
        return [value for span, value in zip(self.spans, values, strict=True) for _ in range(span.begin, span.end)]


def require_answers(turn: int) -> None:
    """For a turn that has got no answer. Raises ServiceError (retriable) at the first: weights that have learned
    nothing would pass for new ones."""
    if not turn:
        raise ServiceError("no sampled answer could be learned from: none came back whole", retriable=True)


# (turn, the new weights or None for those training began with) -> answers, on rank 0
RolloutSource = Callable[[int, dict[str, Tensor] | None], list[Rollout]]


def answers_of(rollouts: RolloutSource, turn: int, weights: dict[str, Tensor] | None) -> list[Rollout]:
    """What a turn has to learn from, on rank 0. Raises ServiceError as `require_answers`."""
    found = rollouts(turn, weights)
    if not found:
        require_answers(turn)
    return found


Score = Callable[[Sequence[TokenSequence]], list[float]]
