"""The optimiser behind every training loop: AdamW in one process, DeepSpeed ZeRO in several, one interface."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from trainer.distributed import World
from trainer.forward_pass import prepare
from trainer.lora import add_adapter, merged, trained_parameters, use_adapter
from trainer.optimisation import OptimConfig

BETAS = (0.9, 0.95)
ADAPTER = "policy"  # the name of a module's adapter, where it shares its base with no other
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's names

P = ParamSpec("P")
R = TypeVar("R")
_opened: ContextVar[ExitStack | None] = ContextVar("opened", default=None)  # by the training call under way


@dataclass
class EngineState:
    """What an engine needs to go on as if it had never stopped: whole, in fp32, on the CPU, on rank 0 only.

    `tensors` are `weight/NAME`, `exp_avg/NAME` and `exp_avg_sq/NAME` of every trained weight; `adam_steps` how often
    AdamW has moved it. `steps` are the engine's own: its place in the schedule.
    """

    steps: int
    tensors: dict[str, Tensor] = field(default_factory=dict)
    adam_steps: dict[str, int] = field(default_factory=dict)


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """Linear rise over `warmup * total` steps, then cosine towards zero. `step` counts from 0."""
    rising = int(total * warmup)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(total - rising, 1)))


class Engine(ABC):
    """Owns a module and its optimiser. Call `module` for forward passes; `step` for an update."""

    module: nn.Module

    def __init__(self, module: nn.Module, lr: float, total_steps: int, optim: OptimConfig) -> None:
        self._lr, self._total, self._warmup = lr, max(total_steps, 1), optim.warmup
        self.trained = trained_parameters(module)
        self.steps = 0
        self.micro_batches = 0  # forward and backward passes so far: the gradients of one step's are summed

    def step(self, micro_losses: Sequence[Callable[[], Tensor]]) -> float:
        """One update by the gradient of the sum of `micro_losses`, each evaluated in turn to hold one graph at a time.

        In several processes each passes its own part of the sum. Returns the sum of this process's losses.
        """
        rate = learning_rate(min(self.steps, self._total - 1), self._total, self._lr, self._warmup)
        loss = self._update(micro_losses, rate)
        self.steps += 1
        self.micro_batches += len(micro_losses)
        return loss

    @abstractmethod
    def _update(self, micro_losses: Sequence[Callable[[], Tensor]], rate: float) -> float: ...

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The whole fp32 weights on the CPU, a copy, adapters merged. Every process must call it."""

    def trained_tensors(self) -> dict[str, Tensor]:
        """What is trained, alone and under the names of `module`: with LoRA the adapter and a head. On rank 0 only."""
        tensors = self.state().tensors
        return {name.removeprefix("weight/"): one for name, one in tensors.items() if name.startswith("weight/")}

    @abstractmethod
    def state(self) -> EngineState:
        """A copy of weights, moments and position. Every process must call it; rank 0 gets the tensors."""

    def load_state(self, state: EngineState) -> None:
        """Goes on from `state`, of any number of processes and any ZeRO stage. Every process needs the whole of it.

        Raises ValueError where it is not one of this model.
        """
        known = {f"weight/{name}": parameter for name, parameter in self.trained.items()}
        given = {name for name in state.tensors if name.startswith("weight/")}
        if given != known.keys():
            raise ValueError(f"a state of another model: {sorted(given ^ known.keys())[:4]} are not in both")
        self._load(state)
        self.steps = state.steps

    @abstractmethod
    def _load(self, state: EngineState) -> None: ...

    def close(self) -> None:  # noqa: B027 - most engines hold nothing
        """Lets go of what outlives the object. It can be used no more."""

    def _state_of(self, optimizer: torch.optim.Optimizer) -> EngineState:
        """Of an optimiser that holds the trained weights themselves."""
        state = EngineState(self.steps)
        for name, parameter in self.trained.items():
            moments = optimizer.state.get(parameter, {})
            found = {"weight": parameter} | {kind: moments[kind] for kind in MOMENTS if kind in moments}
            state.tensors |= {f"{kind}/{name}": one.detach().cpu().clone() for kind, one in found.items()}
            state.adam_steps[name] = int(moments.get("step", 0))
        return state

    def _load_into(self, optimizer: torch.optim.Optimizer, state: EngineState) -> None:
        for name, parameter in self.trained.items():
            parameter.data.copy_(state.tensors[f"weight/{name}"])
            if f"{MOMENTS[0]}/{name}" in state.tensors:
                optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.adam_steps[name]), device=parameter.device),
                    **{kind: state.tensors[f"{kind}/{name}"].to(parameter.device, copy=True) for kind in MOMENTS},
                }


class AdamWEngine(Engine):
    """One process: torch's AdamW, no machinery."""

    def __init__(self, module: nn.Module, lr: float, total_steps: int, optim: OptimConfig) -> None:
        super().__init__(module, lr, total_steps, optim)
        self.module = module
        self._clip = optim.clip_norm
        self._optimizer = adamw(self.trained.values(), lr, optim)

    def _update(self, micro_losses: Sequence[Callable[[], Tensor]], rate: float) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for micro in micro_losses:
            loss = micro()
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(self.trained.values(), self._clip)
        self._optimizer.step()
        return total

    def tensors(self) -> dict[str, Tensor]:
        state = self.module.state_dict()
        return merged({name: tensor.detach().float().cpu().clone() for name, tensor in state.items()}, self.module)

    def state(self) -> EngineState:
        return self._state_of(self._optimizer)

    def _load(self, state: EngineState) -> None:
        self._load_into(self._optimizer, state)


def adamw(parameters: Iterable[nn.Parameter], lr: float, optim: OptimConfig) -> torch.optim.AdamW:
    # Fused: one pass over each tensor instead of ten, 3 to 5 times as fast on a CPU.
    return torch.optim.AdamW(parameters, lr=lr, betas=BETAS, weight_decay=optim.weight_decay, fused=True)


def open_engine(module: nn.Module, lr: float, total_steps: int, optim: OptimConfig, world: World) -> Engine:
    """The engine for this world: plain AdamW alone, ZeRO together, and where anything is to be offloaded.

    `module` is prepared in place: its precision, its checkpointing and, with LoRA, an adapter where it has none yet.
    """
    module = prepare(with_adapter(module, optim), optim)
    engine: Engine
    if world.size == 1 and optim.offload == "none":
        engine = AdamWEngine(module, lr, total_steps, optim)
    else:
        from trainer.zero import DeepSpeedEngine

        engine = DeepSpeedEngine(module, lr, total_steps, optim, world)
    if (stack := _opened.get()) is not None:
        stack.callback(engine.close)
    return engine


def with_adapter(module: nn.Module, optim: OptimConfig) -> nn.Module:
    """`module` with an adapter, where the settings want one and it has none yet. In place."""
    if optim.lora_rank and getattr(module, "adapter", None) is None:
        model = getattr(module, "lm", None) or module.backbone
        add_adapter(model, ADAPTER, optim)
        use_adapter(module, model, ADAPTER)
    return module


def closes_engines(train: Callable[P, R]) -> Callable[P, R]:
    """A training call: the engines that are opened in it are closed when it ends, however it ends."""

    @wraps(train)
    def closing(*args: P.args, **kwargs: P.kwargs) -> R:
        with ExitStack() as stack:
            token = _opened.set(stack)
            stack.callback(_opened.reset, token)
            return train(*args, **kwargs)

    return closing
