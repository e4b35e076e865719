"""What a sentence says: the words of each dimension, with synonyms; two different ones are UNCLEAR."""

import re

from anyloop.world.language import SYNONYMS
from anyloop.world.perceive.picture import UNCLEAR, agreed
from anyloop.world.scenes import PITCHES, Scene, Sound

_ALSO = {
    "a": "one",
    "an": "one",
    "1": "one",
    "2": "two",
    "3": "three",
    "slowly": "slow",
    "quickly": "fast",
    "tiny": "small",
    "huge": "large",
    "upwards": "up",
    "downwards": "down",
} | {synonym: value for value, synonyms in SYNONYMS.items() for synonym in synonyms}


def words_of(text: str) -> list[str]:
    """Lower-case words with plural endings and synonyms folded into the values of the world."""
    known = []
    for word in re.findall(r"[a-z0-9]+", text.lower()):
        folded = _ALSO.get(word, word)
        if folded.endswith("s") and folded[:-1] in ("circle", "square", "triangle"):
            folded = folded[:-1]
        known.append(folded)
    return known


def perceive_sentence(text: str, kind: type[Scene]) -> dict[str, str]:
    """The dimensions of a `kind` scene that `text` states."""
    words = words_of(text)
    found = {}
    for dimension, values in kind.VALUES.items():
        found[dimension] = agreed(word for word in words if word in values)
    if kind is Sound:
        pitches = [word for word in words if word in PITCHES]
        for at, dimension in enumerate(("first", "second", "third")):
            found[dimension] = pitches[at] if len(pitches) == 3 else UNCLEAR
    return found
