"""Adapters: what they change, what they leave, and that the published weights are the model that was trained."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from trainer.algorithms.dpo import DPOConfig, train_dpo
from trainer.answer_model import AnswerModel, ScalarModel, token_logprobs
from trainer.batches import TokenSequence, collate
from trainer.distributed import World
from trainer.engine import Engine, open_engine
from trainer.examples import Pair
from trainer.lora import LoraError, add_adapter, trained_parameters
from trainer.model_family import ModelFamily
from trainer.optimisation import OptimConfig

LORA = OptimConfig(lora_rank=4, lora_alpha=8)
SEQUENCES = [TokenSequence((1, 2, 3 + i), (20, 21 + i, 7)) for i in range(4)]


def step(engine: Engine) -> None:
    batch = collate(SEQUENCES)
    engine.step([lambda: -token_logprobs(engine.module, batch).mean()])


def value_step(engine: Engine) -> None:
    batch = collate(SEQUENCES)
    engine.step([lambda: (engine.module(batch.input_ids, batch.last) - 1).square().mean()])


@torch.no_grad()
def logprobs(model: AnswerModel) -> torch.Tensor:
    return token_logprobs(model, collate(SEQUENCES))


def test_a_new_adapter_changes_nothing(checkpoint: Path) -> None:
    plain, adapted = AnswerModel.load(checkpoint), AnswerModel.load(checkpoint)
    open_engine(adapted, 1e-3, 10, LORA, World())
    torch.testing.assert_close(logprobs(adapted), logprobs(plain), atol=0, rtol=0)


def test_merged_weights_compute_what_the_adapter_computed(checkpoint: Path) -> None:
    adapted = AnswerModel.load(checkpoint)
    engine = open_engine(adapted, 1e-2, 10, LORA, World())
    for _ in range(5):
        step(engine)
    merged = AnswerModel.load(checkpoint)
    before = logprobs(merged)
    merged.load_state_dict(engine.tensors())  # strict: plain names, all of them
    after = logprobs(adapted)
    assert float((after - before).abs().max()) > 0.1
    torch.testing.assert_close(logprobs(merged), after, atol=1e-5, rtol=0)


def test_only_the_adapter_is_trained_and_kept_by_the_optimiser(checkpoint: Path) -> None:
    adapted = AnswerModel.load(checkpoint)
    engine = open_engine(adapted, 1e-2, 10, LORA, World())
    step(engine)
    frozen = AnswerModel.load(checkpoint).state_dict()
    for name, tensor in adapted.state_dict().items():
        if ".lora_" not in name:
            assert torch.equal(tensor, frozen[name.replace(".base_layer.", ".")]), name
    assert {name.rsplit(".", 3)[1] for name in engine.trained} == {"lora_A", "lora_B"}
    whole = sum(one.numel() for one in AnswerModel.load(checkpoint).parameters())
    assert sum(one.numel() for one in engine.trained.values()) < whole / 4


def test_published_weights_of_a_dpo_run_are_plain(checkpoint: Path) -> None:
    pairs = [Pair((1, 2, 3 + i), (20, 21, 22, i), (30, 31 + i), "preference", str(i)) for i in range(4)]
    trained = train_dpo(World(), checkpoint, checkpoint, pairs, [], DPOConfig(lr=1e-2, batch=2), LORA)
    assert trained.tensors.keys() == AnswerModel.load(checkpoint).lm.state_dict().keys()
    assert trained.metrics["dpo_margin_last"] > 0


def test_policy_reference_reward_and_values_share_one_base(checkpoint: Path) -> None:
    family = ModelFamily(checkpoint, LORA, World())
    policy = family.policy(AnswerModel)
    reference, reward, values = family.reference(checkpoint), family.scalar("reward"), family.scalar("critic")
    weight = policy.lm.get_decoder().layers[0].mlp.down_proj.base_layer.weight
    for model in (reference.lm.get_decoder(), reward.backbone, values.backbone):
        assert model.layers[0].mlp.down_proj.base_layer.weight is weight
    alone = logprobs(AnswerModel.load(checkpoint))
    actor, critic = open_engine(policy, 1e-2, 10, LORA, World()), open_engine(values, 1e-2, 10, LORA, World())
    assert not actor.trained.keys() & critic.trained.keys()
    for _ in range(3):
        step(actor)
        value_step(critic)
    after = logprobs(policy)
    torch.testing.assert_close(logprobs(reference), alone, atol=0, rtol=0)
    assert float((after - alone).abs().max()) > 0.05
    value_step(critic)
    torch.testing.assert_close(logprobs(policy), after, atol=0, rtol=0)  # the critic's steps do not move the policy
    batch = collate(SEQUENCES)
    with torch.no_grad():
        assert float(values(batch.input_ids, batch.last).abs().max()) > 0
        assert float(reward(batch.input_ids, batch.last).abs().max()) == 0


def test_a_reward_model_goes_from_one_call_to_another_as_adapter_and_head(checkpoint: Path) -> None:
    engine = open_engine(ScalarModel.load(checkpoint), 1e-2, 10, LORA, World())
    for _ in range(3):
        value_step(engine)
    small = engine.trained_tensors()
    assert {name.split(".")[0] for name in small} == {"backbone", "head"}
    family = ModelFamily(checkpoint, LORA, World())
    family.policy(AnswerModel)
    batch = collate(SEQUENCES)
    with torch.no_grad():
        expected = engine.module(batch.input_ids, batch.last)
        again = family.scalar("reward", small)(batch.input_ids, batch.last)
    torch.testing.assert_close(again, expected, atol=0, rtol=0)


def test_without_lora_every_model_of_a_family_is_its_own(checkpoint: Path) -> None:
    family = ModelFamily(checkpoint, OptimConfig(), World())
    policy, reference = family.policy(AnswerModel), family.reference(checkpoint)
    assert not family.shared
    assert policy.lm is not reference.lm
    assert len(trained_parameters(policy)) == len(list(policy.parameters()))


@pytest.mark.parametrize(("targets", "word"), [("no_such_layer", "no such layer"), ("embed_tokens", "linear")])
def test_targets_that_are_no_linear_layers_are_refused(checkpoint: Path, targets: str, word: str) -> None:
    with pytest.raises(LoraError, match=rf"LORA_TARGETS={targets}.*{word}"):
        add_adapter(AnswerModel.load(checkpoint).lm, "policy", OptimConfig(lora_rank=2, lora_targets=targets))


def test_named_targets_are_the_only_ones(checkpoint: Path) -> None:
    model = AnswerModel.load(checkpoint)
    add_adapter(model.lm, "policy", OptimConfig(lora_rank=2, lora_targets="q_proj, v_proj"))
    assert {name.split(".")[-4] for name, _ in model.named_parameters() if "lora" in name} == {"q_proj", "v_proj"}


def test_settings_and_training_functions_do_not_import_peft_or_deepspeed() -> None:
    code = "import sys, trainer.config, trainer.model_family; print({'peft', 'deepspeed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
