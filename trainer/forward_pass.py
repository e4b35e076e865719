"""How a forward pass is computed: in which precision, and what it keeps for the backward pass."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from trainer.optimisation import OptimConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound=nn.Module)


def prepare(module: nn.Module, optim: OptimConfig) -> nn.Module:
    """`module` with the precision and the checkpointing of the settings. In place; idempotent."""
    if optim.activation_checkpointing:
        for model in _outermost(module):
            checkpoint_activations(model)
    return set_precision(module, optim)


def set_precision(module: M, optim: OptimConfig) -> M:
    """`module` with the precision of the settings: what frozen models need, so that they can be compared with trained
    ones. In place; idempotent."""
    if optim.precision == "bf16" and not isinstance(module.forward, _Bfloat16):
        module.forward = _Bfloat16(module.forward)
    return module


def checkpoint_activations(model: "PreTrainedModel") -> None:
    """Every decoder layer keeps its input only and is computed again in the backward pass: a third more time.

    transformers does so for layers in training mode; here the layers alone are, so that no dropout comes with it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


class _Bfloat16:
    """A forward function whose matrix products are in bfloat16. Weights, their gradients and the result stay fp32."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self._forward = forward

    def __call__(self, *arguments: Any, **named: Any) -> Tensor:
        device = next(one.device.type for one in arguments if isinstance(one, Tensor))
        with torch.autocast(device, torch.bfloat16):
            return self._forward(*arguments, **named).float()


def _outermost(module: nn.Module) -> "list[PreTrainedModel]":
    """The transformers models inside `module`, not their own parts."""
    from transformers import PreTrainedModel

    if isinstance(module, PreTrainedModel):
        return [module]
    return [model for child in module.children() for model in _outermost(child)]
