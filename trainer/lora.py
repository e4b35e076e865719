"""Low-rank adapters (arXiv 2106.09685) by peft: small trained matrices beside frozen weights, added up on publish.

Several adapters may stand on one model: then policy, reference (no adapter), reward model and value function share the
base weights in memory. A model uses the adapter it names from its forward pass until the next model's: a backward
pass that computes activations again finds the same one.
"""

import re
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.optimisation import OptimConfig

_ADAPTER = re.compile(r"\.lora_\w+\.(\w+)\.")


class LoraError(ValueError):
    """The settings of LoRA do not fit the model."""


def add_adapter(lm: nn.Module, name: str, optim: OptimConfig) -> None:
    """A new adapter of a transformers LM, which changes nothing until it is trained. Freezes the LM's own weights.

    In place. Raises LoraError where `lora_targets` name no linear layer of this model.
    """
    from peft import LoraConfig, inject_adapter_in_model  # a second to import, and only LoRA needs it
    from peft.tuners.lora import Linear

    targets: str | list[str] = "all-linear"  # peft's word for all but the output head
    if optim.lora_targets != targets:
        targets = [one.strip() for one in optim.lora_targets.split(",")]
        _check(lm, targets)
    config = LoraConfig(r=optim.lora_rank, lora_alpha=optim.lora_alpha, target_modules=targets, lora_dropout=0.0)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are what we want
        torch.manual_seed(optim.seed)  # every process draws the same
        inject_adapter_in_model(config, lm, adapter_name=name)
    if wrong := {type(one).__name__ for one in lm.modules() if hasattr(one, "lora_A") and not isinstance(one, Linear)}:
        raise LoraError(f"ANYLOOP_TRAINER_LORA_TARGETS={optim.lora_targets}: {sorted(wrong)} cannot be merged")
    for key, parameter in lm.named_parameters():
        parameter.requires_grad_(".lora_" in key)


def _check(lm: nn.Module, targets: list[str]) -> None:
    """Raises LoraError where a target is no layer of `lm`, or one that is not linear, or its output head."""
    for target in targets:
        named = [one for name, one in lm.named_modules() if name == target or name.endswith(f".{target}")]
        layers = [getattr(one, "base_layer", one) for one in named]  # another adapter may stand there already
        if not layers:
            known = {name.rsplit(".", 1)[-1] for name, one in lm.named_modules() if isinstance(one, nn.Linear)}
            raise LoraError(f"ANYLOOP_TRAINER_LORA_TARGETS={target}: no such layer; linear ones are {sorted(known)}")
        if not all(isinstance(one, nn.Linear) for one in layers) or lm.get_output_embeddings() in layers:
            raise LoraError(f"ANYLOOP_TRAINER_LORA_TARGETS={target}: adapters stand on linear layers inside the model")


def use_adapter(module: nn.Module, lm: nn.Module, name: str | None) -> None:
    """Every forward pass of `module` is with the adapter `name` of `lm`; None: with the base weights alone."""
    layers = [layer for layer in lm.modules() if hasattr(layer, "lora_A")]

    def switch(*_: object) -> None:
        for layer in layers:
            # peft's set_adapter() would also say which weights are trained, which the engines have settled.
            layer._disable_adapters = name is None
            layer._active_adapter = [name] if name else []

    module.adapter = name
    module.register_forward_pre_hook(switch)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """What an engine moves: all of `module`, or its own adapter and what else is not frozen (a head)."""
    own = getattr(module, "adapter", None)
    found = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: one for name, one in found.items() if (of := _ADAPTER.search(name)) is None or of[1] == own}


def rename_adapter(key: str, name: str) -> str:
    """A tensor's name where its adapter is called `name`."""
    return _ADAPTER.sub(lambda match: match[0].replace(f".{match[1]}.", f".{name}."), key)


def merged(tensors: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The state of `module` as that of the plain model, `W + scaling * B A` where its adapter stands."""
    adapter = getattr(module, "adapter", None)
    plain = {name.replace(".base_layer.", "."): one for name, one in tensors.items() if ".lora_" not in name}
    if adapter is None:
        return plain
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A"):
            low, high = (tensors[f"{name}.lora_{part}.{adapter}.weight"] for part in "AB")
            change = layer.scaling[adapter] * (high @ low)
            plain[f"{name}.weight"] = plain[f"{name}.weight"] + (change.T if layer.fan_in_fan_out else change)
    return plain
