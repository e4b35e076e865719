"""The language model of tiny-omni and its training loop: packed rows, AdamW, cosine."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from anyloop.sequence import SequenceLayout


def build_lm(layout: SequenceLayout, hidden: int = 192, layers: int = 5) -> Qwen3ForCausalLM:
    """An untrained early-fusion causal LM: one vocabulary for text and all codes."""
    config = Qwen3Config(
        vocab_size=layout.vocabulary_size,
        hidden_size=hidden,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        max_position_embeddings=1024,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=layout.special("bos"),
        eos_token_id=layout.end,
        attn_implementation="sdpa",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=layout.special("bos"),
        eos_token_id=layout.end,
        do_sample=True,
        temperature=1.0,
        max_new_tokens=64,
    )
    return model


def packed_loss(model: Qwen3ForCausalLM, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean cross-entropy over the answer tokens of packed rows; samples of a row do not see each other."""
    ids, segments, positions, mask = batch
    width = ids.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
    allowed = (segments[:, None, :] == segments[:, :, None]) & causal
    hidden = model.model(input_ids=ids, position_ids=positions, attention_mask=allowed[:, None]).last_hidden_state
    targets = mask[:, 1:]
    logits = model.lm_head(hidden[:, :-1][targets])
    return torch.nn.functional.cross_entropy(logits.float(), ids[:, 1:][targets])


def train_lm(
    model: Qwen3ForCausalLM,
    batches: Iterator[tuple[torch.Tensor, ...]],
    steps: int,
    learning_rate: float,
    bf16: bool,
    report: Callable[[int, float, float], None],
) -> None:
    """Trains in place. `report(step, loss, tokens per second)` is called after every step."""
    device = model.device
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))
    warmup = max(1, steps // 30)
    model.train()
    for step in range(steps):
        began = time.monotonic()
        progress = step / steps
        rate = learning_rate * min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = tuple(tensor.to(device) for tensor in next(batches))
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = packed_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        report(step, float(loss.detach()), batch[0].numel() / (time.monotonic() - began))
    model.eval()
