"""Our DPO step beside TRL 1.16's DPOTrainer: the same pairs, the same tiny Llama in fp32, loss and every gradient.

What agrees exactly (up to the order of sums): the sigmoid loss; `sigmoid_norm`, our `length_normalised`; the likelihood
term (`loss_type=["sigmoid", "sft"]`, our `sft_coefficient`); `reference_free`, which TRL 1.16 no longer names, with
reference log-probabilities of zero; conservative label smoothing, which TRL offers as `aot` (with a single pair its
sorting changes nothing). What differs: TRL's `robust` loss divides by 1 - 2 epsilon to be unbiased (arXiv 2403.00409),
ours is the conservative loss; weights per pair are ours alone.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.algorithms.dpo import DPOConfig, dpo_step, reference_scores
from trainer.answer_model import AnswerModel
from trainer.distributed import World
from trainer.engine import open_engine
from trainer.examples import Pair
from trainer.optimisation import OptimConfig
from trainer.prefix_proof import prove_sharing

ATOL = 1e-6  # of losses and gradients in fp32; the largest gradients are about 0.1

OPTIM = OptimConfig(clip_norm=1e9)  # TRL clips between the loss and the step, after what is compared here


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # far from uniform, so that differences show
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def pairs(count: int = 4) -> list[Pair]:
    """Prompts and answers of unequal lengths: padding on both sides of the comparison."""
    generator = torch.Generator().manual_seed(3)

    def draw(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 48, (length,), generator=generator).tolist())

    end = (2,)  # TRL adds it where it is missing
    return [Pair(draw(4 + 3 * i), draw(1 + i) + end, draw(6 - i) + end, "preference", str(i)) for i in range(count)]


@dataclass
class Measured:
    loss: float
    gradients: dict[str, Tensor]


def ours(config: DPOConfig, some: list[Pair], optim: OptimConfig) -> Measured:
    policy, reference = AnswerModel(llama(0)), AnswerModel(llama(1))
    sharing = prove_sharing(policy, optim.shared_prefix)
    assert (sharing is None) == (optim.shared_prefix == "off")
    scored = (
        [(pair, 0.0, 0.0) for pair in some]
        if config.reference_free
        else reference_scores(reference, some, optim.batch_tokens, sharing)
    )
    engine = open_engine(policy, 1e-6, 1, optim, World())  # a step leaves its gradients where they are
    found = dpo_step(engine, scored, [], config, optim, World(), sharing)
    return Measured(found["loss"], {name: one.grad for name, one in policy.lm.named_parameters()})


@pytest.fixture
def trl() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, on import and at a step
        yield pytest.importorskip("trl")


def theirs(trl: Any, folder: Path, some: list[Pair], **settings: Any) -> Measured:
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(48)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", bos_token="<1>", eos_token="<2>")

    def text(tokens: tuple[int, ...]) -> str:
        return "".join(f" <{token}>" for token in tokens)

    rows = [{"prompt": text(one.prompt), "chosen": text(one.chosen), "rejected": text(one.rejected)} for one in some]
    reference_free = settings.pop("reference_free", False)
    arguments = trl.DPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=len(some),
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        max_length=None,
        **settings,
    )
    policy = llama(0)
    trainer = trl.DPOTrainer(
        policy, ref_model=llama(1), args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    assert [tuple(row["chosen_ids"]) for row in trainer.train_dataset] == [pair.chosen for pair in some]
    batch = trainer.data_collator(list(trainer.train_dataset))
    if reference_free:
        trainer.precompute_ref_logps = True
        batch |= {"ref_chosen_logps": torch.zeros(len(some)), "ref_rejected_logps": torch.zeros(len(some))}
    loss = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    loss.backward()
    return Measured(float(loss), {name: one.grad for name, one in policy.named_parameters()})


CASES: list[tuple[str, DPOConfig, dict[str, Any]]] = [
    ("sigmoid", DPOConfig(sft_coefficient=0.0), {}),
    ("beta", DPOConfig(sft_coefficient=0.0, beta=0.5), {"beta": 0.5}),
    ("reference_free", DPOConfig(sft_coefficient=0.0, reference_free=True), {"reference_free": True}),
    (
        "length_normalised",
        DPOConfig(sft_coefficient=0.0, length_normalised=True, beta=2.0),
        {"loss_type": ["sigmoid_norm"], "beta": 2.0},
    ),
    (
        "sft_coefficient",
        DPOConfig(sft_coefficient=0.7),
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]},
    ),
]


@pytest.mark.parametrize("sharing", ["auto", "off"])
@pytest.mark.parametrize(("config", "settings"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_loss_and_gradients_are_those_of_trl(
    trl: Any, tmp_path: Path, config: DPOConfig, settings: dict[str, Any], sharing: Any
) -> None:
    agree(ours(config, pairs(), replace(OPTIM, shared_prefix=sharing)), theirs(trl, tmp_path, pairs(), **settings))


def test_parts_of_a_step_add_up_to_the_batch_of_trl(trl: Any, tmp_path: Path) -> None:
    optim = replace(OPTIM, batch_tokens=24)
    agree(ours(DPOConfig(sft_coefficient=0.0), pairs(), optim), theirs(trl, tmp_path, pairs()))


def test_conservative_label_smoothing_is_that_of_aot_on_one_pair(trl: Any, tmp_path: Path) -> None:
    config = DPOConfig(sft_coefficient=0.0, label_smoothing=0.2, beta=0.5)
    settings: dict[str, Any] = {"loss_type": ["aot"], "label_smoothing": 0.2, "beta": 0.5}
    agree(ours(config, pairs(1), OPTIM), theirs(trl, tmp_path, pairs(1), **settings))


def test_a_weight_of_zero_leaves_a_pair_out(trl: Any, tmp_path: Path) -> None:
    some = pairs()
    weighted = [replace(pair, weight=float(i < 3)) for i, pair in enumerate(some)]
    found = ours(DPOConfig(sft_coefficient=0.0), weighted, OPTIM)
    agree(found, theirs(trl, tmp_path, some[:3]))


def agree(found: Measured, expected: Measured) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=2e-6, abs=ATOL)
    assert max(float(one.abs().max()) for one in expected.gradients.values()) > 1e-3
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name], gradient, atol=ATOL, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
