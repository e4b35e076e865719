"""Every way of running a model gives what the model itself gives."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from services.hosts.interface import HostError
from services.policy.engine import Engine, Request, Sampling, WeightSet, load_checkpoint
from services.policy.engine.forward import Chunk, ForwardOptions, NoForward, build_forward, choose, fused
from services.policy.engine.forward.linear import linear, packing_works, padded_rows, row_counts

VOCABULARY = 97
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
MOE = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
# name -> (model type, changes to the shape, the forward that it runs by)
FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("llama", {}, "fused"),
    "llama tied, with biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        "fused",
    ),
    "llama 3 rotation": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "fused",
    ),
    "llama with a rotation that follows the length": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "transformers",
    ),
    "mistral with a window": ("mistral", {"sliding_window": 6}, "fused"),
    "qwen2": ("qwen2", {}, "fused"),
    "qwen3": ("qwen3", {}, "fused"),
    "qwen3, some layers with a window": ("qwen3", WINDOW, "fused"),
    "gemma": ("gemma", {"hidden_act": "gelu_pytorch_tanh"}, "fused"),
    "gemma2": ("gemma2", {"sliding_window": 6, "query_pre_attn_scalar": 8}, "transformers"),
    "gemma3": ("gemma3_text", {"sliding_window": 6, "query_pre_attn_scalar": 8}, "transformers"),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}, "transformers"),
    "gpt-neox": ("gpt_neox", {}, "transformers"),
    "mixtral": ("mixtral", MOE, "transformers"),
    "mamba": ("mamba", {"state_size": 4}, "uncached"),
}


def _model(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    kind, changes, _ = FAMILIES[name]
    config = AutoConfig.for_model(kind, **{**SHAPE, **changes})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=None)
    for parameter in model.parameters():  # wide enough that no two logits tie
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)
    return model.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_answers_are_those_of_generate_token_by_token(name: str) -> None:
    model = _model(name)
    weights = WeightSet("v0", model, "digest")
    assert weights.forward.kind == FAMILIES[name][2]
    engine = Engine(slots=3, max_tokens=64, queue=16, prefix_rows=2)
    engine.add_weights(weights)
    engine.activate("v0", "finish")
    prompts = [[(5 * place + 11 * row) % VOCABULARY for place in range(3 + 7 * row)] for row in range(4)]
    requests = [Request(str(row), prompt, Sampling(0.0, max_tokens=12)) for row, prompt in enumerate(prompts)]
    for request in requests:
        engine.submit(request)
    while engine.busy:
        assert all(end.error is None for end in engine.step())
    for prompt, request in zip(prompts, requests, strict=True):
        with torch.no_grad():
            inputs = torch.tensor([prompt])
            whole = model.generate(
                inputs, attention_mask=torch.ones_like(inputs), do_sample=False, max_new_tokens=12, pad_token_id=0
            )
        assert request.output == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("name", ["llama", "qwen3, some layers with a window"])
def test_without_the_compiled_attention_the_logits_are_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    model = _model(name)
    compiled = build_forward(model, ForwardOptions(length=64), kind="fused")
    monkeypatch.setattr(fused, "decode_attention", lambda *_: None)
    plain = build_forward(model, ForwardOptions(length=64), kind="fused")
    logits = []
    for forward in (compiled, plain):
        cache = forward.new_cache(3, 64)
        forward.read(cache, [Chunk(0, 0, [3] * 9), Chunk(2, 0, [4] * 20)])
        logits.append(forward.decode(cache, [0, 2], [5, 6], [9, 20]))
    assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, (_, _, kind) in FAMILIES.items() if kind == "fused"])
def test_a_forward_takes_other_weights_without_a_module(name: str) -> None:
    first = build_forward(_model(name), ForwardOptions(length=64), kind="fused")
    assert isinstance(first, fused.FusedForward)
    model = _model(name)
    for parameter in model.parameters():
        parameter.data.mul_(0.9)
    wanted, found = fused.FusedForward(model, ForwardOptions(length=64)), first.with_tensors(model.state_dict())
    before = first.score([[1, 2, 3, 4]])[0]
    assert torch.equal(found.score([[1, 2, 3, 4]])[0], wanted.score([[1, 2, 3, 4]])[0])
    assert not torch.equal(found.score([[1, 2, 3, 4]])[0], before)
    assert torch.equal(first.score([[1, 2, 3, 4]])[0], before)


@pytest.mark.parametrize("name", ["qwen3, some layers with a window", "gemma3", "mamba"])
def test_scores_are_the_log_probabilities_of_the_model(name: str) -> None:
    model = _model(name)
    forward = build_forward(model, ForwardOptions(length=64))
    sequences = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5], [2, 7], [1, 4, 1, 4, 2]]
    scores = forward.score(sequences)
    for sequence, score in zip(sequences, scores, strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)
        expected = logprobs.gather(1, torch.tensor(sequence[1:])[:, None])[:, 0]
        assert score.tolist() == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral with a window", "gpt2"])
def test_a_prompt_read_in_pieces_is_the_prompt_read_at_once(name: str) -> None:
    forward = build_forward(_model(name), ForwardOptions(length=64))
    tokens = [(7 * place) % VOCABULARY for place in range(21)]
    whole, pieces = forward.new_cache(2, 64), forward.new_cache(2, 64)
    forward.read(whole, [Chunk(1, 0, tokens[:20])])
    for start, end in ((0, 1), (1, 9), (9, 20)):
        forward.read(pieces, [Chunk(1, start, tokens[start:end])])
    at_once = forward.decode(whole, [1], [tokens[20]], [20])
    in_pieces = forward.decode(pieces, [1], [tokens[20]], [20])
    assert torch.allclose(at_once, in_pieces, atol=1e-4)


def test_rows_that_do_not_stand_side_by_side_are_decoded_together() -> None:
    forward = build_forward(_model("llama"), ForwardOptions(length=64))
    cache = forward.new_cache(5, 64)
    forward.read(cache, [Chunk(row, 0, [row + 1, 2, 3]) for row in range(5)])
    apart = [forward.decode(cache, [row], [9], [3])[0] for row in range(5)]
    together = forward.decode(cache, [0, 3, 4], [9, 9, 9], [3, 3, 3])
    assert torch.allclose(together, torch.stack([apart[0], apart[3], apart[4]]), atol=1e-5)


def test_bfloat16_weights_stay_close_to_float32() -> None:
    model = _model("llama")
    exact = build_forward(model, ForwardOptions(length=64))
    half = build_forward(model, ForwardOptions(length=64, dtype="bfloat16"))
    cache, half_cache = exact.new_cache(1, 64), half.new_cache(1, 64)
    for forward, rows in ((exact, cache), (half, half_cache)):
        forward.read(rows, [Chunk(0, 0, [5, 6, 7, 8])])
    wanted = exact.decode(cache, [0], [9], [4])
    found = half.decode(half_cache, [0], [9], [4])
    assert found.dtype == torch.float32
    error = float((found - wanted).abs().max())
    assert 0.0 < error < 0.02 * float(wanted.abs().max())


def test_a_forward_that_does_not_agree_with_its_model_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused.FusedForward, "_norm_weight", lambda self, weight: weight.detach() * 1.5)
    monkeypatch.setattr(choose, "_said", set())
    with caplog.at_level(logging.INFO):
        kinds = [build_forward(_model("llama"), ForwardOptions(length=64)).kind for _ in range(2)]
    assert kinds == ["transformers", "transformers"]
    said = [record.getMessage() for record in caplog.records if "forward" in record.getMessage()]
    assert said == ["LlamaForCausalLM runs by the transformers forward (fused: its logits are not the model's)"]
    with pytest.raises(NoForward, match="its logits are not the model's"):
        build_forward(_model("llama"), ForwardOptions(length=64), kind="fused")


def test_where_nothing_compiles_the_step_runs_uncompiled_and_a_warning_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*args: Any, **options: Any) -> None:
        raise RuntimeError("no C++ compiler was found\nand a long trace")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(choose, "_said", set())
    for _ in range(2):
        assert build_forward(_model("qwen3"), ForwardOptions(length=64, compile=True)).kind == "fused"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "Qwen3ForCausalLM runs by the fused forward (fused, compiled: RuntimeError: no C++ compiler was found)",
        )
    ]


@pytest.mark.slow  # it compiles for ten seconds
def test_a_compiled_step_gives_what_the_plain_one_gives() -> None:
    model = _model("qwen3")
    plain = build_forward(model, ForwardOptions(length=64))
    compiled = build_forward(model, ForwardOptions(length=64, compile=True), kind="fused")
    for rows in (1, 3):
        logits = []
        for forward in (plain, compiled):
            cache = forward.new_cache(4, 64)
            forward.read(cache, [Chunk(row, 0, [1, 2, 3 + row]) for row in range(rows)])
            logits.append(forward.decode(cache, list(range(rows)), [9] * rows, [3] * rows))
        assert torch.allclose(*logits, atol=1e-4)


@pytest.mark.parametrize("rows", [1, 5, 32, 300])
def test_a_packed_matrix_multiplies_like_the_plain_one(rows: int) -> None:
    assert packing_works()
    torch.manual_seed(0)
    x, other = torch.randn(rows, 48), torch.randn(rows, 40)
    weight, bias = torch.randn(40, 48), torch.randn(40)
    packed, plain = linear(weight, bias), x @ weight.T + bias
    assert torch.allclose(packed(x), plain, atol=1e-4)
    assert torch.allclose(packed.silu(x), torch.nn.functional.silu(plain), atol=1e-4)
    assert torch.allclose(packed.times(x, other), plain * other, atol=1e-4)
    assert torch.allclose(packed.plus(x, other), plain + other, atol=1e-4)


def test_kernels_are_compiled_for_few_numbers_of_rows() -> None:
    assert [padded_rows(rows) for rows in (1, 3, 5, 13, 29, 32, 33, 64, 65, 1000)] == [
        *(1, 4, 8, 16, 32),
        *(32, 64, 64, 96, 1024),
    ]
    assert sorted({padded_rows(rows) for rows in range(1, 129)}) == row_counts()
    assert len(row_counts()) == 13  # longer inputs go in blocks of 128


def test_the_longest_sequence_is_the_shorter_of_what_is_asked_for_and_what_the_model_was_made_for() -> None:
    for name in ("llama", "gpt2"):
        assert build_forward(_model(name), ForwardOptions(length=384)).max_length == 128
        assert build_forward(_model(name), ForwardOptions(length=64)).max_length == 64
    engine = Engine(slots=2, max_tokens=384, queue=4)
    with pytest.raises(HostError, match="the model reads 128 tokens at most: set ANYLOOP_ENGINE_MAX_TOKENS"):
        engine.add_weights(WeightSet("v0", _model("gpt2"), "digest", options=ForwardOptions(length=384)))


@pytest.mark.parametrize("name", ["mamba", "gpt2", "gemma2"])
def test_a_checkpoint_of_any_family_loads_and_leaves_torch_as_it_was(name: str, tmp_path: Path) -> None:
    _model(name).to(torch.bfloat16).save_pretrained(tmp_path)
    dtypes = []
    original = torch.set_default_dtype

    def watched(dtype: torch.dtype) -> None:
        dtypes.append(dtype)
        original(dtype)

    torch.set_default_dtype = watched
    try:
        weights = load_checkpoint(tmp_path, "v0", options=ForwardOptions(length=64))
    finally:
        torch.set_default_dtype = original
    assert weights.forward.kind == FAMILIES[name][2]
    assert set(dtypes) <= {torch.float32}  # it is every thread's default while steps run
    assert torch.get_default_dtype() is torch.float32


def test_a_lack_of_memory_is_neither_the_checkpoints_fault_nor_a_reason_for_a_slower_way(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def starved(*_: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    _model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr(fused.FusedForward, "_place", starved)
    with pytest.raises(HostError) as refused:
        load_checkpoint(tmp_path, "v0", options=ForwardOptions(length=64))
    assert refused.value.code == "RESOURCE_EXHAUSTED"


def test_bfloat16_is_said_to_have_no_effect_where_it_has_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "_said", set())
    with caplog.at_level(logging.INFO):
        build_forward(_model("gpt2"), ForwardOptions(length=64, dtype="bfloat16"))
    assert "the weights stay float32" in caplog.records[-1].getMessage()
