"""The optimiser behind every training loop: AdamW in one process, DeepSpeed ZeRO in several, one interface."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from trainer.distributed import World
from trainer.optimisation import OptimConfig

BETAS = (0.9, 0.95)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear rise over `warmup * total` steps, then cosine towards zero. `step` counts from 0."""
    rising = int(total * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


class Engine(ABC):
    """Owns a module and its optimiser. Call `module` for forward passes; `step` for an update."""

    module: nn.Module

    def __init__(self, lr: float, total_steps: int, optim: OptimConfig) -> None:
        self._lr, self._total, self._warmup = lr, max(total_steps, 1), optim.warmup
        self.steps = 0

    def step(self, micro_losses: Sequence[Callable[[], Tensor]]) -> float:
        """One update by the gradient of the sum of `micro_losses`, each evaluated in turn to hold one graph at a time.

        In several processes each passes its own part of the sum. Returns the sum of this process's losses.
        """
        rate = learning_rate(min(self.steps, self._total - 1), self._total, self._lr, self._warmup)
        loss = self._update(micro_losses, rate)
        self.steps += 1
        return loss

    @abstractmethod
    def _update(self, micro_losses: Sequence[Callable[[], Tensor]], rate: float) -> float: ...

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The whole fp32 weights on the CPU, a copy. Every process must call it."""


class AdamWEngine(Engine):
    """One process: torch's AdamW, no machinery."""

    def __init__(self, module: nn.Module, lr: float, total_steps: int, optim: OptimConfig) -> None:
        super().__init__(lr, total_steps, optim)
        self.module = module
        self._clip = optim.clip_norm
        self._optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=BETAS, weight_decay=optim.weight_decay)

    def _update(self, micro_losses: Sequence[Callable[[], Tensor]], rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in micro_losses:
            loss = micro()
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.module.parameters(), self._clip)
        self._optimizer.step()
        return total

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor.detach().float().cpu().clone() for name, tensor in self.module.state_dict().items()}


class DeepSpeedEngine(Engine):
    """Several processes: DeepSpeed ZeRO with the same AdamW, schedule and clipping: losses agree with one process."""

    def __init__(self, module: nn.Module, lr: float, total_steps: int, optim: OptimConfig, world: World) -> None:
        import deepspeed

        super().__init__(lr, total_steps, optim)
        self._world, self._stage = world, optim.zero_stage
        optimizer = torch.optim.AdamW(module.parameters(), lr=lr, betas=BETAS, weight_decay=optim.weight_decay)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # only bookkeeping: batches are made by tokens, not by count
            "gradient_accumulation_steps": 1,
            "gradient_clipping": optim.clip_norm,
            "zero_optimization": {"stage": optim.zero_stage},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self.module, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)

    def _update(self, micro_losses: Sequence[Callable[[], Tensor]], rate: float) -> float:
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate
        total = 0.0
        # ZeRO reduces inside backward: every rank must run equally many, so short ranks repeat one with weight zero.
        rounds = self._world.largest(len(micro_losses))
        for i in range(rounds):
            loss = micro_losses[i]() if i < len(micro_losses) else 0.0 * micro_losses[-1]()
            self.module.set_gradient_accumulation_boundary(i == rounds - 1)
            # DeepSpeed averages over ranks; the parts are parts of one sum.
            self.module.backward(loss * self._world.size)
            total += float(loss.detach())
        self.module.step()
        return total

    def tensors(self) -> dict[str, Tensor]:
        if self._stage < 3:
            state = self.module.module.state_dict()
            return {name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}
        import deepspeed

        gathered = {}
        for name, parameter in self.module.module.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter):
                gathered[name] = parameter.detach().float().cpu().clone()
        return gathered


def open_engine(module: nn.Module, lr: float, total_steps: int, optim: OptimConfig, world: World) -> Engine:
    """The engine for this world: plain AdamW alone, ZeRO together."""
    if world.size == 1:
        return AdamWEngine(module, lr, total_steps, optim)
    return DeepSpeedEngine(module, lr, total_steps, optim, world)
