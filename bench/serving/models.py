"""The model directories of the comparison: each opens in AnyLoop and in `transformers serve`, as it is.

Beside tiny-omni stand two Llamas with random weights. Their tokens are words of four letters, so that a client counts
tokens exactly by counting characters, and no token of theirs is ever half a character. Their special tokens are out of
reach: an answer never ends before its length, greedy or sampled.
"""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from anyloop.config import TINY_OMNI
from anyloop.sequence import SequenceLayout, Sequencer
from anyloop.sequence.layout import SPECIALS

VOCABULARY = 4096
WORD_LETTERS = 4
NAMES = ("tiny-omni", "llama-7m", "llama-27m")
# The prompt of `Sequencer.prompt`, token by token.
CHAT_TEMPLATE = (
    "<|bos|>{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    hidden: int
    intermediate: int
    layers: int = 8
    heads: int = 8
    key_value_heads: int = 4


LLAMAS = {"llama-7m": Shape(256, 576), "llama-27m": Shape(512, 1344)}


def model_directory(name: str, cache: Path) -> Path:
    """The directory of one of `NAMES` under `cache`, built unless it is there. The same bytes every time."""
    directory = cache / name
    if not (directory / "tokenizer_config.json").exists():  # the last file written
        shutil.rmtree(directory, ignore_errors=True)
        directory.parent.mkdir(parents=True, exist_ok=True)
        if name == "tiny-omni":
            shutil.copytree(TINY_OMNI, directory)
        else:
            build_llama(directory, LLAMAS[name])
        _write_for_transformers(directory)
    return directory


def build_llama(directory: Path, shape: Shape, vocabulary: int = VOCABULARY) -> None:
    """A random Llama with its tokenizer and layout, as AnyLoop opens them."""
    directory.mkdir(parents=True)
    layout = SequenceLayout.build(vocabulary - len(SPECIALS), {})
    Sequencer(word_tokenizer(layout.text_tokens), layout).save(directory)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        bos_token_id=layout.special("bos"),
        eos_token_id=layout.end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    _put_out_of_reach(model, range(layout.text_tokens, vocabulary))
    model.save_pretrained(directory)


@torch.no_grad()
def _put_out_of_reach(model: LlamaForCausalLM, tokens: range) -> None:
    """Keeps dimension 0 of the residual stream at a positive constant, and makes it speak against `tokens` alone."""
    model.model.embed_tokens.weight[:, 0] = 0.1
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = 0.0
        layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[tokens.start : tokens.stop] = 0.0
    model.lm_head.weight[tokens.start : tokens.stop, 0] = -200.0


def word_tokenizer(size: int) -> Tokenizer:
    """`size` tokens, each a word of four letters; text is cut every four letters."""
    words = words_of(size)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f".{{{WORD_LETTERS}}}"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def words_of(size: int) -> list[str]:
    syllables = [a + b for a in "bcdfghjklmnprstvwxyz" for b in "aeiou"]
    return sorted(random.Random(0).sample([a + b for a in syllables for b in syllables], size))


def _write_for_transformers(directory: Path) -> None:
    """What `transformers serve` needs beside: a chat template with the special tokens, and no end-of-sequence token."""
    sequencer = Sequencer.from_pretrained(directory)
    layout, known = sequencer.layout, sequencer.tokenizer.get_vocab_size()
    vocabulary = int(json.loads((directory / "config.json").read_text())["vocab_size"])
    specials = {layout.special(name): f"<|{name}|>" for name in SPECIALS}
    # Every id behind the tokenizer's own, because transformers numbers added tokens without gaps.
    names = {token: specials.get(token, f"<|{token}|>") for token in range(known, vocabulary)}
    # Not `special`: the server would keep such a token from its clients, who could not count it.
    added = {
        str(token): {
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": False,
        }
        for token, name in names.items()
    }
    GenerationConfig(do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=64).save_pretrained(directory)
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": added,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer, indent=1) + "\n")
