"""What the reference world is made of: pictures, sounds, videos and countable things, each a tuple of named attributes.

A scene is a frozen dataclass whose fields are its dimensions: a judge compares them one by one, an annotator speaks of
them by name, and a corruption changes exactly one of them.
"""

import itertools
import zlib
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import numpy as np

COUNTS = ("one", "two", "three")
SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square", "triangle")
POSITIONS = ("left", "right", "top", "bottom")
PITCHES = ("low", "middle", "high")
LOUDNESSES = ("quiet", "loud")
TIMBRES = ("pure", "hollow", "bright")
DIRECTIONS = ("left", "right", "up", "down")
SPEEDS = ("slow", "fast")

Split = Literal["train", "gate", "heldout"]
_SALT = "131|"
SPLITS: tuple[Split, ...] = ("train", "gate", "heldout")


@dataclass(frozen=True)
class Scene:
    """Base of all scenes. `VALUES` names the dimensions, in field order, and what each may be."""

    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {}

    def attributes(self) -> dict[str, str]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def split(self) -> Split:
        """One combination in ten belongs to the gate, two are held out, by a hash that never changes.

        The salt is one of those that leave every thing at every place, and at every speed, in the train split: what is
        held out is how they combine.
        """
        bucket = zlib.crc32("|".join((_SALT + type(self).__name__, *self.attributes().values())).encode()) % 10
        return "gate" if bucket == 2 else "heldout" if bucket < 2 else "train"

    @classmethod
    def every(cls) -> list["Scene"]:
        """All combinations, in a fixed order."""
        return [cls(*values) for values in itertools.product(*cls.VALUES.values())]

    @classmethod
    def of_split(cls, split: Split) -> list["Scene"]:
        key = (cls, split)
        if key not in _BY_SPLIT:
            _BY_SPLIT[key] = [scene for scene in cls.every() if scene.split == split]
        return _BY_SPLIT[key]


_BY_SPLIT: dict[tuple[type[Scene], str], list[Scene]] = {}


@dataclass(frozen=True)
class Picture(Scene):
    count: str
    size: str
    colour: str
    shape: str
    position: str
    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "count": COUNTS,
        "size": SIZES,
        "colour": COLOURS,
        "shape": SHAPES,
        "position": POSITIONS,
    }


@dataclass(frozen=True)
class Sound(Scene):
    """Three notes in a row, all of one loudness and one timbre."""

    first: str
    second: str
    third: str
    loudness: str
    timbre: str
    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "first": PITCHES,
        "second": PITCHES,
        "third": PITCHES,
        "loudness": LOUDNESSES,
        "timbre": TIMBRES,
    }


@dataclass(frozen=True)
class Clip(Scene):
    """One shape that moves along a straight line."""

    size: str
    colour: str
    shape: str
    direction: str
    speed: str
    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "size": SIZES,
        "colour": COLOURS,
        "shape": SHAPES,
        "direction": DIRECTIONS,
        "speed": SPEEDS,
    }


@dataclass(frozen=True)
class Things(Scene):
    """Countable things in a story, for tasks in text alone."""

    count: str
    size: str
    colour: str
    shape: str
    VALUES: ClassVar[dict[str, tuple[str, ...]]] = {
        "count": COUNTS,
        "size": SIZES,
        "colour": COLOURS,
        "shape": SHAPES,
    }


def sample_scene(kind: type[Scene], split: Split, rng: np.random.Generator) -> Scene:
    scenes = kind.of_split(split)
    return scenes[int(rng.integers(len(scenes)))]


def changed(scene: Scene, dimension: str, value: str) -> Scene:
    """The same scene with one dimension set to `value`."""
    return type(scene)(**{**scene.attributes(), dimension: value})


def other_value(scene: Scene, dimension: str, rng: np.random.Generator) -> str:
    """A value of `dimension` that the scene does not have."""
    values = [value for value in scene.VALUES[dimension] if value != getattr(scene, dimension)]
    return values[int(rng.integers(len(values)))]
