"""The small Llama of the comparison, in a shape that builds in a moment."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from anyloop.sequence import Sequencer
from bench.serving import models
from bench.serving.models import NAMES, Shape, model_directory
from bench.serving.prompts import LENGTHS, prompts_for


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(models, "LLAMAS", {name: Shape(64, 96, layers=2) for name in models.LLAMAS})
        for name in NAMES:
            model_directory(name, folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_both_tokenizers_read_a_prompt_alike(cache: Path, name: str) -> None:
    sequencer = Sequencer.from_pretrained(cache / name)
    theirs = AutoTokenizer.from_pretrained(cache / name)
    for prompt in prompts_for(sequencer, 8, "alike"):
        messages = [{"role": "user", "content": prompt.text}]
        rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert rendered["input_ids"] == prompt.tokens
        assert LENGTHS[0] - 12 <= len(prompt.tokens) <= LENGTHS[1]
    assert theirs.eos_token_id is None


def test_prompts_are_the_same_for_a_seed_and_all_different() -> None:
    sequencer = Sequencer.from_pretrained(models.TINY_OMNI)
    first, again, other = (prompts_for(sequencer, 6, seed) for seed in ("a", "a", "b"))
    assert first == again
    assert len({prompt.text for prompt in [*first, *other]}) == 12


def test_every_text_token_of_a_random_llama_has_four_letters(cache: Path) -> None:
    sequencer = Sequencer.from_pretrained(cache / "llama-7m")
    tokens = [5, 0, 4090, 17]
    text = sequencer.decode_text(tokens)
    assert len(text) == 4 * len(tokens)
    assert sequencer.encode_text(text) == tokens


def test_a_random_llama_never_says_a_special_token(cache: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(cache / "llama-7m")
    layout = Sequencer.from_pretrained(cache / "llama-7m").layout
    logits = model(torch.randint(0, 4096, (4, 60), generator=torch.Generator().manual_seed(1))).logits
    reach = logits.softmax(-1)[..., layout.text_tokens :].sum(-1)
    assert float(reach.detach().max()) < 1e-9


def test_a_directory_is_built_once_and_from_a_seed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LLAMAS", {"llama-7m": Shape(64, 96, layers=2)})
    weights = (cache / "llama-7m" / "model.safetensors").read_bytes()
    again = model_directory("llama-7m", tmp_path) / "model.safetensors"
    assert again.read_bytes() == weights
    written = again.stat().st_mtime_ns
    model_directory("llama-7m", tmp_path)
    assert again.stat().st_mtime_ns == written
