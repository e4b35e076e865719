"""What all training loops share: how a step is formed and how the optimiser moves."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class OptimConfig:
    """The settings of the same names, without a prefix."""

    batch_tokens: int = 4096  # per forward pass, padding included; a step sums the gradients of as many as it takes
    shared_prefix: Literal["auto", "off"] = "auto"  # one pass over a prompt for all its answers, where proven equal
    weight_decay: float = 0.0
    clip_norm: float = 1.0  # largest norm of a step's whole gradient
    warmup: float = 0.1  # share of the steps with a rising rate; then cosine to zero
    zero_stage: int = 2  # DeepSpeed ZeRO, when WORLD_SIZE > 1
    offload: Literal["none", "optimizer", "parameters"] = "none"  # what waits in the host's memory; by ZeRO
    precision: Literal["fp32", "bf16"] = "fp32"  # of forward and backward passes; weights and moments stay fp32
    activation_checkpointing: bool = False  # keep each layer's input only, and compute the layer twice
    lora_rank: int = 0  # of the adapters that are trained in place of the weights; 0: the weights themselves
    lora_alpha: int = 32  # an adapter counts alpha / rank times
    lora_targets: str = "all-linear"  # or the layers' names, with commas
    seed: int = 0  # of the order of the data

    def __post_init__(self) -> None:
        """Raises ValueError on settings that DeepSpeed cannot do together."""
        if self.offload != "none" and self.zero_stage == 0:
            raise ValueError("ANYLOOP_TRAINER_OFFLOAD needs ZeRO: set ANYLOOP_TRAINER_ZERO_STAGE to 1, 2 or 3")
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError("ANYLOOP_TRAINER_OFFLOAD=parameters needs ANYLOOP_TRAINER_ZERO_STAGE=3")
