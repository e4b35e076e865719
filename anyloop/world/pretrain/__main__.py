"""`python -m anyloop.world.pretrain --out DIR`: fits the codecs, trains the language model, measures its skills."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from anyloop.config import TINY_OMNI
from anyloop.modality import MEDIA_MODALITIES, Modality
from anyloop.sequence import SequenceLayout, Sequencer
from anyloop.world.pretrain.card import write_card
from anyloop.world.pretrain.codecs import fit_codec
from anyloop.world.pretrain.corpus import CodeBook, Corpus, Noise, pack, texts
from anyloop.world.pretrain.lm import build_lm, train_lm
from anyloop.world.pretrain.skills import Skills

_TEXT_TOKENS = 640
_WIDTH = 512  # tokens per packed row


def train_tokenizer(rng: np.random.Generator) -> Tokenizer:
    """Byte-level BPE over the world's English; any other text still encodes, byte by byte."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=_TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts(rng, 6000), trainer)
    return tokenizer


def batches(corpus: Corpus, rows: int, rng: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
    stream = corpus.samples(rng)
    while True:
        yield pack(stream, rows, _WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, default=TINY_OMNI)
    parser.add_argument("--steps", type=int, default=3400)
    parser.add_argument("--rows", type=int, default=8, help=f"packed rows of {_WIDTH} tokens per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--answer-noise", type=float, default=Noise.answers)
    parser.add_argument("--critique-noise", type=float, default=Noise.critiques)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast; master weights fp32"
    )
    parser.add_argument("--eval", type=int, default=100, help="held-out prompts per subtask")
    options = parser.parse_args()

    began = time.monotonic()
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    codecs = {modality: fit_codec(modality, rng, print) for modality in MEDIA_MODALITIES}
    for modality, codec in codecs.items():
        codec.save_pretrained(out / "codecs" / str(modality))
    lengths: dict[Modality, tuple[int, int]] = {
        m: (codec.config.codebook_size, codec.config.code_length) for m, codec in codecs.items()
    }
    sequencer = Sequencer(train_tokenizer(rng), SequenceLayout.build(_TEXT_TOKENS, lengths))
    sequencer.save(out)
    model = build_lm(sequencer.layout, options.hidden, options.layers).to(options.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {sequencer.layout.vocabulary_size} tokens")
    corpus = Corpus(sequencer, CodeBook(codecs, rng), Noise(options.answer_noise, options.critique_noise))

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        job = bar.add_task("training", total=options.steps)
        smooth = [0.0, 0.0]

        def report(step: int, loss: float, speed: float) -> None:
            weight = min(0.98, step / (step + 1))
            smooth[0], smooth[1] = weight * smooth[0] + (1 - weight) * loss, weight * smooth[1] + (1 - weight) * speed
            bar.update(job, advance=1, description=f"loss {smooth[0]:.3f}  {smooth[1]:.0f} tokens/s")
            if step % 200 == 199:
                bar.console.print(f"step {step + 1} loss {smooth[0]:.4f} {smooth[1]:.0f} tokens/s")

        train_lm(model, batches(corpus, options.rows, rng), options.steps, options.lr, options.bf16, report)
    trained = time.monotonic() - began
    model.save_pretrained(out)
    skills = Skills(model, sequencer, codecs)
    measured = {
        "parameters": parameters,
        "device": "2 CPU cores" if options.device == "cpu" else options.device,
        "steps": options.steps,
        "rows": options.rows,
        "answer_noise": options.answer_noise,
        "critique_noise": options.critique_noise,
        "prompts_per_subtask": options.eval,
        "command": shlex.join(["python", "-m", "anyloop.world.pretrain", *sys.argv[1:]]),
        "train_seconds": round(trained),
        "train_tokens": options.steps * options.rows * _WIDTH,
        "success_heldout": skills.success("heldout", options.eval, 1),
        "success_heldout_greedy": skills.success("heldout", options.eval, 1, temperature=0),
        "success_train": skills.success("train", options.eval, 2),
        "repair_heldout": skills.repair("heldout", options.eval, 3),
        "critique_exact_heldout": skills.critique("heldout", options.eval, 4),
    }
    print(json.dumps(measured, indent=1))
    (out / "skills.json").write_text(json.dumps(measured, indent=2) + "\n")
    write_card(out, measured)


if __name__ == "__main__":
    main()
