"""The model card of a trained checkpoint, from what was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anyloop.world.tasks import SUBTASKS

_ROWS = (
    ("success_heldout", "right, held-out, temperature 1"),
    ("success_heldout_greedy", "right, held-out, greedy"),
    ("success_train", "right, training combinations, temperature 1"),
    ("repair_heldout", "repaired, held-out, given a right critique"),
    ("critique_exact_heldout", "base critiques that name exactly what is wrong, held-out"),
)


def write_card(directory: Path, measured: Mapping[str, Any]) -> None:
    """Writes README.md beside the weights."""
    header = "| % of answers | " + " | ".join((*SUBTASKS, "mean")) + " |\n|---|" + "---|" * (len(SUBTASKS) + 1)
    rows = [
        f"| {title} | " + " | ".join(f"{100 * measured[key][name]:.0f}" for name in (*SUBTASKS, "mean")) + " |"
        for key, title in _ROWS
    ]
    minutes = measured["train_seconds"] / 60
    size, seen = f"{measured['parameters'] / 1e6:.2f} M", f"{measured['train_tokens'] / 1e6:.1f} M"
    wrong, doubtful = f"{100 * measured['answer_noise']:.0f} %", f"{100 * measured['critique_noise']:.0f} %"
    work = f"{measured['steps']} steps of {measured['rows']} packed rows of 512 tokens"
    text = f"""---
license: apache-2.0
library_name: transformers
tags: [any-to-any]
---
# tiny-omni

The reference model of AnyLoop: an early-fusion causal language model ({size} parameters, `Qwen3ForCausalLM`)
over text tokens and the codes of three codecs (`codecs/image`, `codecs/audio`, `codecs/video`). It reads and
writes text, 64x64 pictures, 0.77 s sounds and one-second videos of AnyLoop's reference world, all in one token
sequence.

**Use it** to run AnyLoop's demo and tests. It knows nothing outside its world of coloured shapes, three-note
sounds and moving shapes; other prompts get answers from that world.

**Data.** Procedural (`anyloop.world.pretrain.corpus`), {seen} tokens: answers to the eight subtasks, {wrong} of
them wrong on purpose, as scraped data would be (this is the room that alignment has); clean refinements (prompt,
answer, critique, right answer); critiques, {doubtful} of them random or vague. Only combinations of attributes of
the train split appear: 10 % belong to the gate and 20 % are held out, for language model and codecs alike.

**Training.** AdamW, cosine, {work}, {minutes:.0f} minutes on {measured["device"]}. Reproduce it:

    {measured["command"]}

**Measured** on {measured["prompts_per_subtask"]} prompts per subtask, judged exactly on decoded pixels, samples,
frames and words:

{header}
{chr(10).join(rows)}

**Codecs.** `PatchVQ`: 16 codes per picture, 12 per sound, 16 per video; 128, 128 and 192 entries.
`anyloop/models/codec.py` says why it is not one of the autoencoders of transformers. The sound codebook knows one
phase per pitch: recordings from elsewhere come back as the nearest world sound, often wrongly.
"""
    (directory / "README.md").write_text(text)
