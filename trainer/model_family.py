"""The models that one training call needs of a checkpoint: policy, reference, reward model, value function.

With LoRA they are adapters (and heads) on one set of base weights; without it each is a model of its own.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from trainer.answer_model import AnswerModel, ScalarModel
from trainer.distributed import World
from trainer.forward_pass import set_precision
from trainer.lora import add_adapter, rename_adapter, use_adapter
from trainer.optimisation import OptimConfig

M = TypeVar("M", bound=AnswerModel)


class ModelFamily:
    """`shared` says whether the models stand on one base: with LoRA, except under ZeRO-3.

    ZeRO-3 cuts an engine's weights into parts, and no second engine could use what is left.
    """

    def __init__(self, checkpoint: Path, optim: OptimConfig, world: World | None = None) -> None:
        deepspeed = optim.offload != "none" or (world is not None and world.size > 1)
        self.shared = bool(optim.lora_rank) and not (deepspeed and optim.zero_stage == 3)
        self.checkpoint, self.world, self._optim = checkpoint, world, optim
        self._base: AnswerModel | None = None

    def policy(self, kind: type[M]) -> M:
        """The model that is trained as the policy."""
        if not self._optim.lora_rank:
            return kind.load(self.checkpoint)  # type: ignore[return-value]
        lm = self._lm().lm
        add_adapter(lm, "policy", self._optim)
        module = kind(lm)
        use_adapter(module, lm, "policy")
        return module

    def reference(self, checkpoint: Path) -> AnswerModel:
        """A frozen model; where it is this family's checkpoint, its base without an adapter."""
        if not self.shared or checkpoint != self.checkpoint:
            return set_precision(AnswerModel.load(checkpoint), self._optim)
        module = AnswerModel(self._lm().lm)
        use_adapter(module, module.lm, None)
        return set_precision(module, self._optim)

    def scalar(self, name: str, tensors: Mapping[str, Tensor] | None = None) -> ScalarModel:
        """A reward model or a value function: `tensors` are all of its weights, or those of an adapter and the head.

        Without `tensors` its head is zero, and so is its adapter.
        """
        if not self._optim.lora_rank:
            model = set_precision(ScalarModel.load(self.checkpoint), self._optim)
            if tensors is not None:
                model.load_state_dict(dict(tensors))
            return model
        lm = self._lm().lm
        add_adapter(lm, name, self._optim)
        model = set_precision(ScalarModel(lm), self._optim)
        use_adapter(model, lm.get_decoder(), name)
        if tensors is not None:
            given = {rename_adapter(key, name): one for key, one in tensors.items()}
            if unknown := model.load_state_dict(given, strict=False).unexpected_keys:
                raise ValueError(f"these weights are of another model or of other LoRA settings: {unknown[:3]}")
        return model

    def _lm(self) -> AnswerModel:
        if self._base is None or not self.shared:
            self._base = AnswerModel.load(self.checkpoint)
        return self._base
