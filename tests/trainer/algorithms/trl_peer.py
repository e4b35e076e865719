"""What the comparisons with TRL share: a tiny Llama far from uniform, a tokenizer of one word per token, gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 48
CONFIG = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # far from uniform, so that differences show
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
COMMON = {"bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": []}


@dataclass
class Measured:
    loss: float
    gradients: dict[str, Tensor]

    @classmethod
    def of(cls, loss: float, module: nn.Module) -> "Measured":
        return cls(loss, {name: one.grad for name, one in module.named_parameters() if one.grad is not None})


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()


def draw(count: int, generator: torch.Generator) -> tuple[int, ...]:
    return tuple(torch.randint(3, VOCABULARY, (count,), generator=generator).tolist())


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<0>", bos_token="<1>", eos_token="<2>")


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask)"""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


def right_padded(rows: Sequence[Sequence[float]], fill: float = 0) -> tuple[Tensor, Tensor]:
    """(values, mask)"""
    width = max(map(len, rows))
    values = torch.tensor([list(row) + [fill] * (width - len(row)) for row in rows])
    return values, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def agree(found: Measured, expected: Measured, atol: float) -> None:
    assert found.loss == pytest.approx(expected.loss, rel=1e-5, abs=atol)
    assert max(float(one.abs().max()) for one in expected.gradients.values()) > 1e-3
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            found.gradients[name], gradient, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


def quiet(name: str) -> Iterator[Any]:
    """The library `name`, its warnings on import and at a step passed over."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield __import__(name)
