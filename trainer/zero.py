"""DeepSpeed ZeRO in several processes (arXiv 1910.02054): the same AdamW, schedule and clipping as one process."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from trainer.distributed import World
from trainer.engine import MOMENTS, Engine, EngineState, adamw
from trainer.lora import merged
from trainer.optimisation import OptimConfig

# ZeRO-3 keeps tensors of fewer elements whole on every process: to gather them costs more than they take.
PERSISTENT = 100_000


def zero_config(optim: OptimConfig) -> dict[str, Any]:
    """DeepSpeed's configuration for these settings."""
    zero: dict[str, Any] = {"stage": optim.zero_stage}
    if optim.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = PERSISTENT
    host = {"device": "cpu", "pin_memory": False}  # the trainer computes on the CPU: there is nothing to copy to
    if optim.offload != "none":
        zero["offload_optimizer"] = host
    if optim.offload == "parameters":
        zero["offload_param"] = host
    return {
        "train_micro_batch_size_per_gpu": 1,  # only bookkeeping: batches are made by tokens, not by count
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.clip_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own needs a compiler at the first step
    }


class DeepSpeedEngine(Engine):
    def __init__(self, module: nn.Module, lr: float, total_steps: int, optim: OptimConfig, world: World) -> None:
        import deepspeed

        super().__init__(module, lr, total_steps, optim)
        world.open_group()
        self._world, self._stage = world, optim.zero_stage
        self.module, *_ = deepspeed.initialize(
            model=module,
            model_parameters=list(self.trained.values()),
            optimizer=adamw(self.trained.values(), lr, optim),
            config=zero_config(optim),
        )

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

    def close(self) -> None:
        """Frees weights, moments and gradients, which DeepSpeed's hooks on autograd's nodes would keep for ever."""
        engine, optimizer = self.module, self.module.optimizer
        engine.destroy()
        for held in (*self.trained.values(), getattr(optimizer, "optimizer", optimizer), optimizer):
            vars(held).clear()  # destroy() leaves cycles that the garbage collector cannot see through
        self.trained = {}

    def tensors(self) -> dict[str, Tensor]:
        model = self.module.module
        names = {id(tensor): name for name, tensor in model.named_parameters()}
        whole = {name: self._whole(parameter) for name, parameter in model.named_parameters()}
        state = model.state_dict(keep_vars=True)  # a tied head has two names there
        return merged(
            {
                name: whole[names[id(tensor)]] if id(tensor) in names else tensor.detach().cpu().clone()
                for name, tensor in state.items()
            },
            model,
        )

    def _whole(self, parameter: nn.Parameter) -> Tensor:
        if self._stage < 3:
            return parameter.detach().float().cpu().clone()
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameter):
            return parameter.detach().float().cpu().clone()

    # State: whole tensors in fp32, whatever the stage and the number of processes

    def state(self) -> EngineState:
        optimizer = self.module.optimizer
        if self._stage == 0:
            return self._state_of(optimizer) if self._world.rank == 0 else EngineState(self.steps)
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state = EngineState(self.steps)
        for name, parameter in self.trained.items():  # every rank takes part in the gathering
            found = {"weight": safe_get_full_fp32_param(parameter)}
            if self.steps:
                found |= {moment: safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS}
            if self._world.rank == 0:
                state.adam_steps[name] = self.steps
                state.tensors |= {f"{kind}/{name}": tensor.cpu().clone() for kind, tensor in found.items()}
        return state

    def _load(self, state: EngineState) -> None:
        optimizer = self.module.optimizer
        if self._stage == 0:
            self._load_into(optimizer, state)
            return
        if state.steps:
            self._make_room(optimizer, max(state.adam_steps.values(), default=state.steps))
        for name, parameter in self.trained.items():
            kinds = ("weight", *MOMENTS) if state.steps else ("weight",)
            values = {kind: state.tensors.get(f"{kind}/{name}") for kind in kinds}
            if self._stage == 3:
                self._set_part(parameter, values)
            else:
                self._set_whole(parameter, values)

    def _make_room(self, optimizer: Any, adam_steps: int) -> None:
        """DeepSpeed's optimiser makes its state at the first step; here it is needed before."""
        whole = self._stage == 3
        flats = optimizer.fp32_partitioned_groups_flat if whole else optimizer.single_partition_of_fp32_groups
        for flat in flats:
            optimizer.optimizer.state[flat] = {
                "step": torch.tensor(float(adam_steps), device=flat.device),
                **{moment: torch.zeros_like(flat) for moment in MOMENTS},
            }
        if not whole:
            optimizer._lazy_init_hp_params_optimizer_state()

    def _set_whole(self, parameter: nn.Parameter, values: dict[str, Tensor | None]) -> None:
        """ZeRO 1 and 2: each process takes its part of the fp32 values, and all of the weights it computes with."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for kind, value in values.items():
            if value is None:  # a weight that never had a gradient has no moments
                continue
            value = value.to(parameter.device)
            if kind == "weight":
                safe_set_full_fp32_param(parameter, value)
                parameter.data.copy_(value)
            else:
                safe_set_full_optimizer_state(parameter, value, kind)

    def _set_part(self, parameter: nn.Parameter, values: dict[str, Tensor | None]) -> None:
        """ZeRO 3: every process holds an equally long part of the flat tensor, the last one padded."""
        import deepspeed
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        length = parameter.ds_tensor.numel()
        for kind, value in values.items():
            if value is None:
                continue
            flat = pad(value.flatten(), (0, length * self._world.size - value.numel()))
            part = flat.narrow(0, length * self._world.rank, length)
            if kind == "weight":
                safe_set_local_fp32_param(parameter, part)
                with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0):
                    if self._world.rank == 0:
                        parameter.data.copy_(value)
            else:
                safe_set_local_optimizer_state(parameter, part, kind)
