"""Precision, activation checkpointing and accumulation do what they say, and nothing else."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.algorithms.dpo import DPOConfig, train_dpo
from trainer.answer_model import AnswerModel, ScalarModel, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Pair
from trainer.forward_pass import prepare
from trainer.model_family import ModelFamily
from trainer.optimisation import OptimConfig

SEQUENCES = [TokenSequence(tuple(range(1, 30)), (20, 21 + i, 7)) for i in range(4)]


def loss_of(model: AnswerModel) -> Callable[[], Tensor]:
    return lambda: -token_logprobs(model, collate(SEQUENCES)).mean()


def gradients(model: AnswerModel) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model)().backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def kept_bytes(model: AnswerModel) -> int:
    """What a forward pass keeps for the backward pass, parameters left out."""
    own = {one.data_ptr() for one in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model)()
    assert loss.requires_grad
    return sum(kept.values())


def test_activation_checkpointing_keeps_less_and_gives_the_same_gradients(checkpoint: Path) -> None:
    plain = AnswerModel.load(checkpoint)
    lean = AnswerModel.load(checkpoint)
    prepare(lean, OptimConfig(activation_checkpointing=True))
    assert kept_bytes(lean) < 0.5 * kept_bytes(plain)
    expected, found = gradients(plain), gradients(lean)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=0, rtol=0)


def test_activation_checkpointing_brings_no_dropout(checkpoint: Path) -> None:
    """Only the layers are in training mode; what is inside them, attention included, stays in evaluation mode."""
    model = AnswerModel.load(checkpoint)
    prepare(model, OptimConfig(activation_checkpointing=True))
    layer = model.lm.get_decoder().layers[0]
    assert layer.training
    assert not layer.self_attn.training
    assert not layer.mlp.training


def test_bf16_multiplies_in_bf16_and_keeps_fp32_weights_gradients_and_results(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    expected = float(loss_of(model)().detach())
    prepare(model, OptimConfig(precision="bf16"))
    seen = []
    model.lm.get_decoder().layers[0].mlp.down_proj.register_forward_hook(lambda *io: seen.append(io[2].dtype))
    batch = collate(SEQUENCES)
    assert model(batch.input_ids, batch.index).dtype == torch.float32
    assert {one.dtype for one in model.parameters()} == {torch.float32}
    assert {one.dtype for one in gradients(model).values()} == {torch.float32}
    assert set(seen) == {torch.bfloat16}
    found = float(loss_of(model)().detach())
    assert found != expected
    assert found == pytest.approx(expected, rel=5e-3)  # bfloat16 has eight bits of mantissa


def test_bf16_moves_fp32_master_weights_by_less_than_bf16_could_hold(checkpoint: Path) -> None:
    model = ScalarModel.load(checkpoint)
    engine = open_engine(model, 1e-6, 10, OptimConfig(precision="bf16", warmup=0.0), World())
    before = model.backbone.layers[0].mlp.down_proj.weight.detach().clone()
    batch = collate(SEQUENCES)
    for _ in range(2):  # the head starts at zero: the first step moves it alone
        engine.step([lambda: (model(batch.input_ids, batch.last) - 1).square().mean()])
    moved = model.backbone.layers[0].mlp.down_proj.weight.detach() - before
    assert 0 < float(moved.abs().max()) < 1e-5


def test_preparing_twice_is_preparing_once(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    optim = OptimConfig(precision="bf16", activation_checkpointing=True)
    forward = prepare(model, optim).forward
    assert prepare(model, optim).forward is forward


def test_a_step_sums_the_gradients_of_its_micro_batches(checkpoint: Path) -> None:
    """Four passes of one sequence each make the step of one pass of four."""
    weights = []
    for parts in (1, 4):
        model = AnswerModel.load(checkpoint)
        engine = open_engine(model, 1e-3, 10, OptimConfig(), World())
        size = len(SEQUENCES) // parts
        micro = [
            lambda at=at, model=model, size=size, parts=parts: (
                -token_logprobs(model, collate(SEQUENCES[at : at + size])).mean() / parts
            )
            for at in range(0, len(SEQUENCES), size)
        ]
        engine.step(micro)
        assert engine.micro_batches == parts
        weights.append(engine.tensors())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("stage", "offload"), [(0, "optimizer"), (2, "parameters")])
def test_offload_that_zero_cannot_do_is_refused_at_once(stage: int, offload: str) -> None:
    with pytest.raises(ValueError, match="ANYLOOP_TRAINER_ZERO_STAGE"):
        OptimConfig(zero_stage=stage, offload=offload)  # type: ignore[arg-type]


def test_policy_and_reference_are_compared_in_the_same_precision(checkpoint: Path) -> None:
    """What has not been trained has a margin of nothing and has gone nowhere, in bf16 too."""
    pairs = [Pair((1, 2, 3 + i), (20, 21 + i, 7), (30, 31 + i), "preference", str(i)) for i in range(6)]
    config = DPOConfig(lr=1e-12, batch=6, epochs=1, sft_coefficient=0.0)
    optim = OptimConfig(precision="bf16", warmup=0.0)
    metrics = train_dpo(World(), checkpoint, checkpoint, pairs, [], config, optim).metrics
    assert metrics["dpo_margin_first"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-5)
    plain = AnswerModel.load(checkpoint)
    expected = token_logprobs(prepare(plain, optim), collate(SEQUENCES))  # type: ignore[type-var]
    family = ModelFamily(checkpoint, optim)
    assert torch.equal(token_logprobs(family.reference(checkpoint), collate(SEQUENCES)), expected)
    # Not so in fp32, or this test could not fail.
    assert not torch.equal(token_logprobs(AnswerModel.load(checkpoint), collate(SEQUENCES)), expected)
