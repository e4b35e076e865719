"""A model directory of the right shape with random weights, built in a second, for tests that need no skill."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from anyloop.modality import Modality
from anyloop.models.codec import PatchVQ, PatchVQConfig
from anyloop.sequence import SequenceLayout, Sequencer

TEXT = ["Draw two small red circles on the left.", "Critique: the colour should be blue. Now refine."]
CODECS = {
    Modality.IMAGE: {"input_shape": (64, 64, 3), "patch_shape": (16, 16, 3), "rate": 0.0},
    Modality.AUDIO: {"input_shape": (6144,), "patch_shape": (512,), "rate": 8000.0},
    Modality.VIDEO: {"input_shape": (8, 64, 64, 3), "patch_shape": (8, 16, 16, 3), "rate": 8.0},
}


def build_random_omni(directory: Path, seed: int = 0, hidden: int = 32) -> Path:
    """Writes a complete model directory (LM, tokenizer, layout, three codecs) and returns it."""
    torch.manual_seed(seed)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    codes = {Modality.IMAGE: (128, 16), Modality.AUDIO: (128, 12), Modality.VIDEO: (128, 16)}
    layout = SequenceLayout.build(320, codes)
    Sequencer(tokenizer, layout).save(directory)
    config = Qwen3Config(
        vocab_size=layout.vocabulary_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=hidden // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=layout.special("bos"),
        eos_token_id=layout.end,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        bos_token_id=layout.special("bos"), eos_token_id=layout.end, do_sample=True, temperature=1.0, max_new_tokens=64
    )
    model.save_pretrained(directory)
    for modality, shape in CODECS.items():
        PatchVQ(PatchVQConfig(modality=str(modality), **shape)).save_pretrained(directory / "codecs" / str(modality))
    return directory
