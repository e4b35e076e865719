"""Each judge accepts its own renderer over all combinations, rejects every single corruption, and bears codec noise."""

import numpy as np
import pytest

from anyloop.modality import Modality
from anyloop.world import tasks
from anyloop.world.language import answer_sentence, describe
from anyloop.world.perceive import UNCLEAR, perceive_clip, perceive_picture, perceive_sentence, perceive_sound
from anyloop.world.render.picture import blank, draw_shape
from anyloop.world.scenes import Clip, Picture, Sound, Things, changed
from anyloop.world.tasks import SUBTASKS, Answer, Task

PERCEIVE = {Picture: perceive_picture, Sound: perceive_sound, Clip: perceive_clip}
NOISE = {Picture: 6.0, Clip: 6.0, Sound: 0.004}  # standard deviation: grey levels of 255, or sample amplitude


@pytest.mark.parametrize("kind", PERCEIVE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_judge_accepts_every_rendering(kind, jitter):
    rng = np.random.default_rng(1)
    for scene in kind.every():
        assert PERCEIVE[kind](tasks.render(scene, rng, jitter)) == scene.attributes(), scene


@pytest.mark.parametrize("kind", PERCEIVE, ids=lambda kind: kind.__name__)
def test_judge_tolerates_noise_of_codec_strength(kind):
    rng = np.random.default_rng(2)
    for scene in kind.every():
        media = tasks.render(scene, rng)
        noisy = media + rng.normal(0, NOISE[kind], media.shape)
        if kind is not Sound:
            noisy = noisy.clip(0, 255).astype(np.uint8)
        assert PERCEIVE[kind](noisy) == scene.attributes(), scene


@pytest.mark.parametrize("kind", PERCEIVE, ids=lambda kind: kind.__name__)
def test_judge_sees_every_single_corruption_and_names_its_dimension(kind):
    rng = np.random.default_rng(3)
    subtask = {Picture: "T2I", Sound: "T2A", Clip: "T2V"}[kind]
    for scene in kind.every()[::3]:
        task = Task(subtask, "", scene)
        for dimension, values in kind.VALUES.items():
            for value in values:
                if value == getattr(scene, dimension):
                    continue
                wrong = changed(scene, dimension, value)
                judgement = tasks.judge(task, tasks.answer_with(task, wrong, wrong, rng))
                assert [(f.dimension, f.expected, f.got) for f in judgement.failed] == [
                    (dimension, getattr(scene, dimension), value)
                ]


@pytest.mark.parametrize("kind", [Picture, Sound, Clip, Things], ids=lambda kind: kind.__name__)
def test_sentences_are_read_back_in_all_their_wordings(kind):
    rng = np.random.default_rng(4)
    for scene in kind.every():
        for text in (describe(scene), describe(scene, rng), answer_sentence(scene, rng)):
            assert perceive_sentence(text, kind) == scene.attributes(), text


def test_a_picture_of_mixed_shapes_is_unclear_where_they_differ():
    image = blank()
    draw_shape(image, "circle", "red", "small", 8, 24)
    draw_shape(image, "circle", "blue", "small", 8, 40)
    seen = perceive_picture(image)
    assert seen["colour"] == UNCLEAR
    assert (seen["count"], seen["shape"], seen["position"]) == ("two", "circle", "left")


def test_an_empty_picture_silence_and_a_still_video_are_unclear():
    assert set(perceive_picture(blank()).values()) == {UNCLEAR}
    silence = perceive_sound(np.zeros(6144, dtype=np.float32))
    assert set(silence.values()) == {UNCLEAR}
    still = blank()
    draw_shape(still, "square", "green", "large", 24, 24)
    seen = perceive_clip(np.stack([still] * 8))
    assert (seen["colour"], seen["direction"], seen["speed"]) == ("green", UNCLEAR, UNCLEAR)


def test_an_unmusical_pitch_is_unclear():
    time = np.arange(6144) / 8000
    seen = perceive_sound(0.5 * np.sin(2 * np.pi * 690 * time))
    assert (seen["first"], seen["second"], seen["third"]) == (UNCLEAR,) * 3


def test_an_upscaled_picture_is_judged_like_the_small_one():
    rng = np.random.default_rng(5)
    scene = Picture("three", "small", "yellow", "triangle", "top")
    image = tasks.render(scene, rng)
    assert perceive_picture(image.repeat(4, 0).repeat(4, 1)) == scene.attributes()


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_right_answers_pass_and_empty_ones_fail_in_every_dimension(subtask):
    rng = np.random.default_rng(6)
    for split in ("train", "gate", "heldout"):
        task = tasks.sample(subtask, split, rng)
        assert tasks.judge(task, tasks.right_answer(task, rng)).ok
        nothing = tasks.judge(task, Answer())
        assert len(nothing.failed) == nothing.dimensions == len(task.scene.VALUES) * len(task.modalities)


def test_contradictory_words_are_unclear():
    seen = perceive_sentence("two small red blue circles on the left", Picture)
    assert seen["colour"] == UNCLEAR
    assert seen["position"] == "left"


def test_both_parts_of_an_interleaved_answer_are_judged():
    rng = np.random.default_rng(7)
    task = tasks.sample("TI2TI", "train", rng)
    wrong = changed(task.scene, "shape", next(s for s in ("circle", "square") if s != task.scene.shape))
    judgement = tasks.judge(task, tasks.answer_with(task, task.scene, wrong, rng))
    assert {(fault.part, fault.dimension) for fault in judgement.failed} == {(Modality.IMAGE, "shape")}
