"""English for scenes: how people ask, how the model answers, in varied wording."""

import numpy as np

from anyloop.world.scenes import Clip, Picture, Scene, Sound, Things

SYNONYMS = {"small": ("small", "little"), "large": ("large", "big"), "quiet": ("quiet", "soft"), "loud": ("loud",)}
_PLACE = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
_SPEED = {"slow": "slowly", "fast": "fast"}


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def _word(value: str, rng: np.random.Generator | None) -> str:
    """The value itself, or (with `rng`) one of its synonyms."""
    return pick(rng, SYNONYMS.get(value, (value,))) if rng is not None else value


def _noun(scene: Picture | Things, rng: np.random.Generator | None) -> str:
    plural = "" if scene.count == "one" else "s"
    count = "a" if rng is not None and scene.count == "one" and rng.random() < 0.5 else scene.count
    return f"{count} {_word(scene.size, rng)} {scene.colour} {scene.shape}{plural}"


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """A phrase that fixes every dimension of the scene. Without `rng` it is the plain one; with it, a varied one."""
    if isinstance(scene, Picture):
        return f"{_noun(scene, rng)} {_PLACE[scene.position]}"
    if isinstance(scene, Things):
        return _noun(scene, rng)
    if isinstance(scene, Clip):
        return f"a {_word(scene.size, rng)} {scene.colour} {scene.shape} moves {scene.direction} {_SPEED[scene.speed]}"
    assert isinstance(scene, Sound)
    return f"{scene.first}, {scene.second}, {scene.third}, {_word(scene.loudness, rng)} and {scene.timbre}"


_ASK = {
    "T2I": ("Draw {}.", "Please draw {}.", "Make a picture of {}.", "I want to see {}.", "Paint {}."),
    "T2A": ("Play {}.", "Play three notes: {}.", "I want to hear {}.", "Make a sound: {}.", "Please play {}."),
    "T2V": ("Show how {}.", "Make a video where {}.", "I want to see how {}.", "A video: {}.", "Animate this: {}."),
    "TI2T": ("What is in the picture?", "Describe the picture.", "What do you see?", "Say what the picture shows."),
    "TA2T": ("What do you hear?", "Describe the sound.", "Which notes are these?", "Say how it sounds."),
    "TV2T": ("What happens in the video?", "Describe the video.", "What moves, and how?", "Say what the video shows."),
}
_EDITS = {
    "count": ("Make it {} of them.", "Now there should be {}.", "Change the number to {}."),
    "size": ("Make it {}.", "Change the size to {}.", "Turn the size to {}."),
    "colour": ("Paint it {}.", "Change the colour to {}.", "Make it {}."),
    "shape": ("Use a {} instead.", "Change the shape to {}.", "Turn it into a {}."),
    "position": ("Move it to the {}.", "Put it at the {}.", "Change the place to the {}."),
}
_STORY = ("There is {}. {} What is there now?", "Take {}. {} What do you have?", "I have {}. {} What do I have now?")


def ask(subtask: str, scene: Scene, rng: np.random.Generator) -> str:
    """A request whose right answer is `scene`. Understanding tasks ask without giving it away."""
    return pick(rng, _ASK[subtask]).format(describe(scene, rng))


def edit(dimension: str, value: str, rng: np.random.Generator) -> str:
    """An instruction to change one dimension."""
    return pick(rng, _EDITS[dimension]).format(_word(value, rng))


def story(source: Things, edits: str, rng: np.random.Generator) -> str:
    """A text-only request: what there was, what happens to it, what is there then?"""
    return pick(rng, _STORY).format(_noun(source, rng), edits)


def answer_sentence(scene: Scene, rng: np.random.Generator) -> str:
    """The answer in words."""
    sentence = describe(scene)
    return pick(rng, ("{}.", "I see {}.", "There is {}.") if isinstance(scene, Picture) else ("{}.",)).format(sentence)
