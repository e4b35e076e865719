"""What a training function hands back."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class Trained:
    """`tensors` are the LM's whole fp32 weights by their names in the checkpoint's state dict, on the CPU."""

    tensors: dict[str, Tensor]
    metrics: dict[str, Any] = field(default_factory=dict)


def lm_tensors(answer_model: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of an AnswerModel under the LM's own names."""
    return {name.removeprefix("lm."): tensor for name, tensor in answer_model.items()}
