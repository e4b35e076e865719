"""The same prompts for every contender: 40 to 100 tokens, no two alike, other ones at every point of the table.

Fresh prompts at every point, because both sides reuse what they have read before.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from anyloop.sequence import Sequencer, Turn

LENGTHS = (40, 100)  # the shortest and the longest, in tokens, template included


@dataclass(frozen=True)
class Prompt:
    text: str
    tokens: list[int]  # as the policy service renders the text


def prompts_for(sequencer: Sequencer, count: int, seed: str) -> list[Prompt]:
    """`count` prompts; the same `seed` gives the same ones."""
    rng = random.Random(seed)
    return [_prompt(sequencer, rng, rng.randint(*LENGTHS)) for _ in range(count)]


def _prompt(sequencer: Sequencer, rng: random.Random, aim: int) -> Prompt:
    text = ""
    while True:
        longer = text + _word(sequencer, rng)
        tokens = sequencer.prompt([Turn("user", (longer,))])
        if text and len(tokens) > aim:
            return Prompt(text, sequencer.prompt([Turn("user", (text,))]))
        text = longer


def _word(sequencer: Sequencer, rng: random.Random) -> str:
    while True:
        word = sequencer.decode_text([rng.randrange(sequencer.layout.text_tokens)])
        if word.isascii() and word.strip().isalpha():
            return word
