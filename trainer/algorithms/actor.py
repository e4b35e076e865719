"""The policy that learns from sampled answers: one forward pass gives log-probabilities, entropy, and maybe values.

Log-probabilities are those of the distribution that the serving engine's grammar leaves, as the engine logs them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.algorithms.rollout import Rollout
from trainer.answer_model import AnswerModel
from trainer.batches import Batch
from trainer.grammar_table import GrammarTable
from trainer.shared_prefix import Group
from trainer.tree_forward import hidden_states


class ActorCritic(AnswerModel):
    """A policy whose backbone also estimates values: its output has one more column, the value of each position."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__(lm)  # type: ignore[arg-type]
        self.head = nn.Linear(self.lm.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def load(cls, checkpoint: Path) -> "ActorCritic":
        return cls(AnswerModel.load(checkpoint).lm)

    def forward(
        self, input_ids: Tensor, index: Tensor, positions: Tensor | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """The `inputs` of a Batch to `[tokens, vocabulary + 1]` at the places `index`."""
        hidden = hidden_states(self.lm.get_decoder(), input_ids, positions, segments)[index]
        return torch.cat([self.lm.get_output_embeddings()(hidden), self.head(hidden)], -1)


@dataclass(frozen=True)
class Answers:
    """Rollouts as one batch; `logged`, `weights` and `current` are flat over their answer tokens, `[tokens]`."""

    batch: Batch
    allowed: Tensor | None
    logged: Tensor
    weights: Tensor
    current: Tensor

    @classmethod
    def of(cls, every: Sequence[Rollout], group: Group, table: GrammarTable | None) -> "Answers":
        """Those of `every` that are in `group`, in its order. `table` None: the engine sampled without a grammar."""
        rollouts = [every[i] for i in group.order]
        allowed = None
        if table is not None:
            rows = [table.rows(one.answer, one.modalities, one.limit) for one in rollouts]
            allowed = table.masks(torch.cat(rows))
        return cls(
            group.collate([one.sequence for one in every]),
            allowed,
            torch.tensor([logprob for one in rollouts for logprob in one.logprobs]),
            torch.cat([one.weights for one in rollouts]),
            torch.cat([one.current for one in rollouts]),
        )


@dataclass(frozen=True)
class Pass:
    """Each `[tokens]`; `entropy`, in nats, without gradient; `values` of an ActorCritic only."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None


def actor_pass(module: nn.Module, answers: Answers, values: bool = False) -> Pass:
    """One forward pass over the answers. `values`: the module is an ActorCritic."""
    logits = module(*answers.batch.inputs(answers.batch.index)).float()
    value = None
    if values:
        logits, value = logits[:, :-1], logits[:, -1]
    if answers.allowed is not None:
        logits = logits.masked_fill(~answers.allowed, float("-inf"))
    logprobs = logits.log_softmax(-1)
    with torch.no_grad():  # what is not allowed has probability 0 and no logarithm
        entropy = -(logprobs.exp() * logprobs.clamp_min(torch.finfo(logprobs.dtype).min)).sum(-1)
    return Pass(logprobs.gather(-1, answers.batch.targets[:, None]).squeeze(-1), entropy, value)


class Watch:
    """What the passes of a turn tell: sums over tokens that count, and the first pass of each token's own weights."""

    def __init__(self) -> None:
        self._sums = {"ratio": 0.0, "clipped": 0.0, "entropy": 0.0}
        self._tokens = 0.0
        self._gaps: list[Tensor] = []
        self._kl: list[Tensor] = []
        self._first = [0.0, 0.0]

    def add(self, found: Pass, answers: Answers, advantages: Tensor, low: float, high: float, first: bool) -> None:
        """`first`: nothing has been updated since the weights were staged, so logged and own should be the same."""
        counted = answers.weights > 0
        gap = (found.logprobs.detach() - answers.logged)[counted]
        ratio, advantages = gap.exp(), advantages[counted]
        clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
        self._sums["ratio"] += float(ratio.sum())
        self._sums["clipped"] += float(clipped.sum())
        self._sums["entropy"] += float(found.entropy[counted].sum())
        self._tokens += float(counted.sum())
        if first:
            self._gaps.append(gap[answers.current[counted]].abs())
            self._first = [self._first[0] + float(ratio.sum()), self._first[1] + float(counted.sum())]

    def add_kl(self, divergence: Tensor) -> None:
        """Per-token estimates of KL(policy || reference)."""
        self._kl.append(divergence.detach())

    def means(self) -> dict[str, float]:
        """Means over the tokens, and how far trainer and serving engine are apart about the same tokens."""
        gaps = torch.cat(self._gaps) if self._gaps else torch.zeros(0)
        found = {name: total / max(self._tokens, 1.0) for name, total in self._sums.items()}
        found["ratio_first"] = self._first[0] / max(self._first[1], 1.0)
        if self._kl:
            found["kl"] = float(torch.cat(self._kl).mean())
        if len(gaps):
            found |= {"mismatch_max": float(gaps.max()), "mismatch_mean": float(gaps.mean())}
        return found


def first_and_last(history: Sequence[dict[str, float]], prefix: str) -> dict[str, float]:
    """The first and the last turn's measurements; a turn lacks those that its answers do not allow."""
    if not history:
        return {}
    ends = (("first", history[0]), ("last", history[-1]))
    return {f"{prefix}{name}_{end}": value for end, turn in ends for name, value in turn.items()}
