"""What a reader must know beside the figures. It goes into the document and the page as it stands here."""

from __future__ import annotations

HOW = (
    "Every method has the same base, the same prompts and the same number of annotations by people. Of one seed, "
    "binary methods get a preference between two answers to a prompt where language methods get a critique of one. "
    "What a method makes of the prompts that nobody annotated is its own affair.",
    "The people are a program, the world's annotator: exact by rule, in few words. People say more, and less exactly.",
    "An answer is right when the world's judge finds every asked dimension right in the pixels, samples, frames or "
    "words. Held-out prompts ask for combinations of attributes that no training prompt has; each gets one answer.",
    "A gain is the difference from the base on the same held-out prompts of the same seed, in percentage points; the "
    "mean is over the eight subtasks.",
)

# Where the settings of the methods were tried out: each entry one sentence.
TUNED: tuple[str, ...] = ()

CAUTION = (
    "The worlds differ: the paper trains models of 7 to 13 billion parameters on what people wrote and scores them "
    "with benchmarks in units of their own; here a model of a few million parameters is trained on a program's "
    "annotations and judged exactly, in percentage points. Compare the signs and the order of the methods, not the "
    "figures."
)
