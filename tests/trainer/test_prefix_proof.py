from pathlib import Path

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.answer_model import AnswerModel, ScalarModel
from trainer.prefix_proof import prove_sharing, refusal

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}


def llama(attention: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**GROUPED, attn_implementation=attention))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_llama_shares_prompts(attention: str) -> None:
    sharing = prove_sharing(AnswerModel(llama(attention)), "auto")
    assert sharing is not None
    assert sharing.token_cost == 3 * 32


def test_the_shipped_model_and_its_reward_model_share_prompts(checkpoint: Path) -> None:
    assert prove_sharing(AnswerModel.load(checkpoint), "auto") is not None
    assert prove_sharing(ScalarModel.load(checkpoint), "auto") is not None


def test_learned_positions_share_prompts() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4))
    assert refusal(model.get_decoder().eval()) == ""


def test_the_setting_turns_it_off() -> None:
    assert prove_sharing(AnswerModel(llama()), "off") is None


def models_that_may_not() -> list[tuple[str, PreTrainedModel, str]]:
    torch.manual_seed(0)
    windowed = {"sliding_window": 4096, "max_window_layers": 1, "use_sliding_window": True}
    return [
        ("mistral", MistralForCausalLM(MistralConfig(**GROUPED, sliding_window=4096)), "sliding"),
        ("qwen3", Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8, **windowed)), "sliding_attention"),
        ("mamba", MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)), "Mamba"),
        ("bloom", BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)), "Bloom"),
    ]


@pytest.mark.filterwarnings("ignore")  # mamba says on loading that its CUDA kernels are missing
def test_other_architectures_are_refused_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    for name, model, reason in models_that_may_not():
        with caplog.at_level("INFO", logger="trainer.prefix_proof"):
            assert prove_sharing(AnswerModel(model.eval()), "auto") is None, name
        assert reason in caplog.text, (name, caplog.text)
        caplog.clear()


def test_a_model_that_ignores_positions_given_to_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    forward = model.model.forward
    monkeypatch.setattr(model.model, "forward", lambda position_ids=None, **inputs: forward(**inputs))
    assert "differently" in refusal(model.model)
