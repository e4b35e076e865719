"""Media and sentences to attributes, measured: pixels, samples, frames and words; never tokens.

Each function returns `dimension -> value`; a dimension that cannot be told, or on which parts disagree, is UNCLEAR.
"""

from anyloop.world.perceive.clip import perceive_clip
from anyloop.world.perceive.picture import UNCLEAR, perceive_picture
from anyloop.world.perceive.sentence import perceive_sentence
from anyloop.world.perceive.sound import perceive_sound

__all__ = ["UNCLEAR", "perceive_clip", "perceive_picture", "perceive_sentence", "perceive_sound"]
