"""What all training loops share: how a step is formed and how the optimiser moves."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimConfig:
    """The settings of the same names, without a prefix."""

    batch_tokens: int = 4096  # per forward pass, padding included
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # largest norm of a step's whole gradient
    warmup: float = 0.1  # share of the steps with a rising rate; then cosine to zero
    zero_stage: int = 2  # DeepSpeed ZeRO, when WORLD_SIZE > 1
    seed: int = 0  # of the order of the data
