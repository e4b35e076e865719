"""Llama-shaped models (Llama, Mistral, Qwen 2 and 3, Gemma) with little overhead per step, from transformers' weights.

The architecture is transformers' own, and every instance is held against the model's own forward before it serves
(`choose.agrees`). What differs is how it runs: matrices packed once for the processor, activation and residual sums in
the same pass as the product, rotation in place on complex pairs, all rows of a step in one call, prompts without
padding.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import PreTrainedModel

from services.policy.engine.forward.decode_attention import decode_attention
from services.policy.engine.forward.interface import Chunk, ForwardOptions, ScoreMasks, Unsupported, longest
from services.policy.engine.forward.key_values import KeyValueCache, row_view
from services.policy.engine.forward.linear import Linear, linear, padded_rows, row_counts
from services.policy.engine.forward.masks import additive, slides, window_of

FAMILIES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "GemmaForCausalLM")
_STEADY_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the others change with the length of the sequence
_BREATH = 0.001  # seconds between two layers that are placed
_WARM_UP = 0.5  # seconds; larger models than that allows take longer for a step than for a kernel
_SCORED_TOKENS = 2048  # per call of the output matrix: its logits take 4 bytes x vocabulary each


@dataclass(slots=True)
class _Layer:
    norm: torch.Tensor
    qkv: Linear
    head_norm: torch.Tensor | None  # [query and key heads, head dimension]
    output: Linear
    mlp_norm: torch.Tensor
    gate: Linear
    up: Linear
    down: Linear
    slides: bool


class FusedForward:
    kind = "fused"

    def __init__(self, model: PreTrainedModel, options: ForwardOptions) -> None:
        """Copies the weights it needs. Raises Unsupported."""
        config = model.config
        _check(model)
        attention, norm = model.model.layers[0].self_attn, model.model.norm
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._dimension: int = attention.head_dim
        self._scale: float = attention.scaling
        self._window = window_of(config)
        self._slides = [slides(config, index) for index in range(config.num_hidden_layers)]
        self.max_length = longest(config, options)
        self._dtype = options.dtype
        self._epsilon = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))
        self._norm_offset = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0
        self._embedding_scale = float(getattr(model.model.embed_tokens, "embed_scale", 1.0))
        self._rotation = _rotation(model, self.max_length, self._dimension)
        self._activation: Callable[[torch.Tensor], torch.Tensor] = model.model.layers[0].mlp.act_fn
        self._silu = isinstance(self._activation, torch.nn.SiLU) or type(self._activation).__name__ == "SiLUActivation"
        # Functions, not bound methods: a forward that refers to itself keeps its weights until a full collection.
        self._before: Callable[..., torch.Tensor] = FusedForward._before_attention
        self._after: Callable[..., torch.Tensor] = FusedForward._after_attention
        if options.compile:
            self._before = torch.compile(FusedForward._before_attention, dynamic=True)
            self._after = torch.compile(FusedForward._after_attention, dynamic=True)
        self._place(model.state_dict())
        self._warm_up()

    def with_tensors(self, tensors: Mapping[str, torch.Tensor]) -> FusedForward:
        """The same model with other weights, under the names of its `state_dict`, tied ones under each of theirs.

        Runs beside decode steps: after each layer it leaves the interpreter to them.
        """
        other = copy.copy(self)
        other._place(tensors)
        return other

    def _place(self, tensors: Mapping[str, torch.Tensor]) -> None:
        embedding = tensors["model.embed_tokens.weight"].detach().float()
        self._embedding = embedding * self._embedding_scale if self._embedding_scale != 1.0 else embedding.clone()
        self._layers = []
        for index in range(len(self._slides)):
            self._layers.append(self._layer(tensors, index))
            time.sleep(_BREATH)
        self._norm = self._norm_weight(tensors["model.norm.weight"])
        self._output = self._matrix(tensors, "lm_head")
        # Each forward has one of its own: it keeps scratch memory.
        self._attention = decode_attention(self._heads, self._kv_heads, self._dimension, self._scale)

    def new_cache(self, rows: int, length: int) -> KeyValueCache:
        return KeyValueCache(len(self._layers), rows, self._kv_heads, length, self._dimension)

    # -- the three ways to run it --------------------------------------------------------------------------------

    @torch.inference_mode()
    def decode(self, cache: KeyValueCache, rows: list[int], tokens: list[int], positions: list[int]) -> torch.Tensor:
        at, width, row_index = torch.tensor(positions), max(positions) + 1, torch.tensor(rows)
        if self._attention is not None:
            attention = self._attention

            def attend_compiled(layer: int, qkv: torch.Tensor) -> torch.Tensor:
                window = self._window if self._layers[layer].slides else 0
                return attention(qkv, cache.keys[layer], cache.values[layer], row_index, at, window)

            return self._output(self._run(torch.tensor(tokens), at, attend_compiled))[: len(rows)]
        view = row_view(rows)
        full = additive(at, width)[:, None, None]
        sliding = additive(at, width, self._window)[:, None, None] if self._window else full
        grouped = (len(rows), self._kv_heads, self._heads // self._kv_heads, self._dimension)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = self._split(qkv)
            keys, values = cache.keys[layer], cache.values[layer]
            keys[row_index, :, at] = k
            values[row_index, :, at] = v
            # The heads of a group stand where a sequence of queries would: each key is read once for all of them.
            return functional.scaled_dot_product_attention(
                q.view(grouped),
                keys[view][:, :, :width],
                values[view][:, :, :width],
                attn_mask=sliding if self._layers[layer].slides else full,
                scale=self._scale,
            )

        return self._output(self._run(torch.tensor(tokens), at, attend))[: len(rows)]

    @torch.inference_mode()
    def read(self, cache: KeyValueCache, chunks: list[Chunk]) -> None:
        tokens = torch.tensor([token for chunk in chunks for token in chunk.tokens])
        at = torch.cat([torch.arange(chunk.start, chunk.start + len(chunk.tokens)) for chunk in chunks])
        spans, begin = [], 0
        for chunk in chunks:
            spans.append((chunk, begin, begin + len(chunk.tokens)))
            begin += len(chunk.tokens)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = self._split(qkv)
            keys, values = cache.keys[layer], cache.values[layer]
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            for chunk, first, last in spans:
                end = chunk.start + last - first
                keys[chunk.row, :, chunk.start : end] = k[first:last].transpose(0, 1)
                values[chunk.row, :, chunk.start : end] = v[first:last].transpose(0, 1)
                past = keys[chunk.row, :, :end], values[chunk.row, :, :end]
                out[first:last] = self._attend_causal(layer, q[first:last], *past, chunk.start)
            return out

        self._run(tokens, at, attend)

    @torch.inference_mode()
    def score(self, sequences: list[list[int]], masks: ScoreMasks | None = None) -> list[torch.Tensor]:
        lengths = [len(sequence) for sequence in sequences]
        tokens = torch.tensor([token for sequence in sequences for token in sequence])
        at = torch.cat([torch.arange(length) for length in lengths])
        ends = torch.tensor(lengths).cumsum(0).tolist()
        spans = list(zip([0, *ends[:-1]], ends, strict=True))

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = self._split(qkv)
            out = torch.empty_like(q, memory_format=torch.contiguous_format)
            for first, last in spans:
                past = k[first:last].transpose(0, 1), v[first:last].transpose(0, 1)
                out[first:last] = self._attend_causal(layer, q[first:last], *past, 0)
            return out

        hidden = self._run(tokens, at, attend)
        scores = torch.empty(len(tokens), dtype=torch.float32)
        # The last token of a sequence is followed by another sequence: what is computed there falls away below.
        mask_rows = [row for rows in masks.rows for row in (*rows, 0)] if masks is not None else []
        for begin in range(0, len(tokens), _SCORED_TOKENS):
            logits = self._output(hidden[begin : begin + _SCORED_TOKENS])
            following = tokens[begin + 1 : begin + 1 + len(logits)]
            logits = logits[: len(following)]  # nothing follows the last token of all
            if masks is not None:
                logits = logits + masks.table[mask_rows[begin : begin + len(logits)]]
            chosen = logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(-1)
            scores[begin : begin + len(chosen)] = chosen
        return [scores[first : last - 1].clone() for first, last in spans]

    # -- layers --------------------------------------------------------------------------------------------------

    def _run(self, tokens: torch.Tensor, at: torch.Tensor, attend: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Hidden states behind the last norm, one for each token and then spare ones.

        `attend(layer, qkv)` takes queries, keys and values `[tokens, heads + 2 key-value heads, dimension]` and gives
        what the heads attended to.
        """
        count = len(tokens)
        spare = padded_rows(count) - count  # computed for nothing, behind everything that is looked at
        x = functional.embedding(functional.pad(tokens, (0, spare)), self._embedding)
        rotation = self._rotation[functional.pad(at, (0, spare))][:, None]
        for index, layer in enumerate(self._layers):
            qkv = self._before(self, layer, x, rotation)
            attended = attend(index, qkv[:count]).reshape(count, -1)
            x = self._after(self, layer, x, functional.pad(attended, (0, 0, 0, spare)) if spare else attended)
        return functional.rms_norm(x, self._norm.shape, self._norm, self._epsilon)

    def _split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, kv_heads = self._heads, self._kv_heads
        return qkv[:, :heads], qkv[:, heads : heads + kv_heads], qkv[:, heads + kv_heads :]

    def _before_attention(self, layer: _Layer, x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values `[tokens, heads + 2 key-value heads, dimension]`, rotated."""
        normed = functional.rms_norm(x, layer.norm.shape, layer.norm, self._epsilon)
        heads = layer.qkv(normed).view(len(x), -1, self._dimension)
        turned = heads[:, : self._heads + self._kv_heads]
        if layer.head_norm is not None:
            turned.copy_(functional.rms_norm(turned, (self._dimension,), None, self._epsilon).mul_(layer.head_norm))
        torch.view_as_complex(turned.unflatten(-1, (-1, 2))).mul_(rotation)
        return heads

    def _after_attention(self, layer: _Layer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = layer.output.plus(attended, x)
        normed = functional.rms_norm(x, layer.mlp_norm.shape, layer.mlp_norm, self._epsilon)
        gate = layer.gate.silu(normed) if self._silu else self._activation(layer.gate(normed))
        return layer.down.plus(layer.up.times(normed, gate), x)

    def _attend_causal(
        self, layer: int, q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int
    ) -> torch.Tensor:
        """Queries `[tokens, heads, dim]` from `start` on over keys `[kv heads, start + tokens, dim]`."""
        end = keys.shape[1]
        window = self._window if self._layers[layer].slides and end > self._window else 0
        mask = additive(torch.arange(start, end), end, window) if start or window else None
        attended = functional.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scale,
            enable_gqa=self._heads != self._kv_heads,
        )
        return attended[0].transpose(0, 1)

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Has the kernels compiled that steps will need, half a millisecond each, as far as half a second goes."""
        until = time.monotonic() + _WARM_UP
        for rows in row_counts():
            if time.monotonic() > until:
                return
            nothing = torch.zeros(rows, self._heads * self._dimension)
            zeros = torch.zeros(rows, dtype=torch.long)
            self._output(self._run(zeros, zeros, lambda layer, qkv, nothing=nothing: nothing))

    def _layer(self, tensors: Mapping[str, torch.Tensor], index: int) -> _Layer:
        prefix = f"model.layers.{index}."
        order = _pair_order(self._dimension)

        def in_pairs(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.unflatten(0, (-1, self._dimension))[:, order].flatten(0, 1)

        weights: list[torch.Tensor] = []
        biases: list[torch.Tensor] = []
        for name, turned in (("q_proj", True), ("k_proj", True), ("v_proj", False)):
            for kind, rows in (("weight", weights), ("bias", biases)):
                tensor = tensors.get(f"{prefix}self_attn.{name}.{kind}")
                if tensor is not None:
                    rows.append(in_pairs(tensor.detach()) if turned else tensor.detach())
        head_norm = None
        if f"{prefix}self_attn.q_norm.weight" in tensors:
            query, key = (tensors[f"{prefix}self_attn.{name}.weight"].detach()[order] for name in ("q_norm", "k_norm"))
            head_norm = torch.stack([query] * self._heads + [key] * self._kv_heads)
        return _Layer(
            norm=self._norm_weight(tensors[prefix + "input_layernorm.weight"]),
            qkv=linear(torch.cat(weights), torch.cat(biases) if biases else None, self._dtype),
            head_norm=head_norm,
            output=self._matrix(tensors, prefix + "self_attn.o_proj"),
            mlp_norm=self._norm_weight(tensors[prefix + "post_attention_layernorm.weight"]),
            gate=self._matrix(tensors, prefix + "mlp.gate_proj"),
            up=self._matrix(tensors, prefix + "mlp.up_proj"),
            down=self._matrix(tensors, prefix + "mlp.down_proj"),
            slides=self._slides[index],
        )

    def _matrix(self, tensors: Mapping[str, torch.Tensor], name: str) -> Linear:
        bias = tensors.get(f"{name}.bias")
        return linear(tensors[f"{name}.weight"].detach(), bias.detach() if bias is not None else None, self._dtype)

    def _norm_weight(self, weight: torch.Tensor) -> torch.Tensor:
        """What the normalised vector is multiplied by: Gemma's adds 1 to its weight."""
        return weight.detach() + self._norm_offset


def _check(model: PreTrainedModel) -> None:
    name = type(model).__name__
    if name not in FAMILIES:
        raise Unsupported(f"{name} is none of {', '.join(FAMILIES)}")
    if model.device.type != "cpu":
        raise Unsupported(f"it lies on {model.device}")
    rotation = (getattr(model.config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in _STEADY_ROTATIONS:
        raise Unsupported(f"its rotation is of type {rotation}")


def _pair_order(dimension: int) -> torch.Tensor:
    """Halves (x_0 .. x_h, y_0 .. y_h), as transformers keeps them, to pairs (x_0, y_0, x_1, y_1 ..)."""
    return torch.arange(dimension).view(2, -1).T.flatten()


def _rotation(model: PreTrainedModel, length: int, dimension: int) -> torch.Tensor:
    """Complex `[length, dimension / 2]`: the rotation of every pair at every position."""
    with torch.no_grad():
        cosine, sine = model.model.rotary_emb(torch.zeros(1, dtype=torch.float32), torch.arange(length)[None])
    if cosine.shape[-1] != dimension:
        raise Unsupported("it rotates only part of each head")
    half = dimension // 2
    return torch.complex(cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous())
