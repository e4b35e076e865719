import numpy as np
import pytest

from anyloop.evaluation.intervals import wilson
from anyloop.evaluation.success import Count, Judged, Success, success
from anyloop.world import tasks
from anyloop.world.scenes import changed
from anyloop.world.tasks import Task

RNG = np.random.default_rng(0)


def judged(task: Task, *said: dict[str, str]) -> Judged:
    """Answers with these values instead of the right ones; {} is a right answer."""
    found = []
    for values in said:
        scene = task.scene
        for dimension, value in values.items():
            scene = changed(scene, dimension, value)
        found.append(tasks.judge(task, tasks.answer_with(task, scene, scene, RNG)))
    return Judged(task, tuple(found))


def with_scene(subtask: str, **values: str) -> Task:
    """A task whose scene has these values."""
    while True:
        task = tasks.sample(subtask, "train", RNG, with_media=False)
        if values.items() <= task.scene.attributes().items():
            return task


def test_right_answers_are_counted_per_subtask_and_right_values_per_dimension() -> None:
    sound, other = (with_scene("T2A", first="low", loudness="quiet") for _ in range(2))
    found = success([judged(sound, {}), judged(other, {"first": "high", "loudness": "loud"})])
    assert found.subtasks == {"T2A": Count(1, 2, wilson(1, 2))}
    counts = {name: (one.right, one.asked) for name, one in found.dimensions["T2A"].items()}
    assert counts == {
        "audio first": (1, 2),
        "audio second": (2, 2),
        "audio third": (2, 2),
        "audio loudness": (1, 2),
        "audio timbre": (2, 2),
    }


def test_dimensions_join_over_subtasks_and_parts() -> None:
    edit, words = with_scene("TI2TI", colour="red"), with_scene("T2T", colour="red")
    found = success([judged(edit, {"colour": "blue"}), judged(words, {})])
    assert set(found.dimensions["TI2TI"]) == {
        f"{part} {name}" for part in ("text", "image") for name in ("count", "size", "colour", "shape", "position")
    }
    assert (found.by_dimension["colour"].right, found.by_dimension["colour"].asked) == (1, 3)
    assert (found.by_dimension["position"].right, found.by_dimension["position"].asked) == (2, 2)


def test_every_subtask_weighs_the_same_in_the_mean() -> None:
    sounds = [judged(with_scene("T2A", first="low"), {}) for _ in range(6)]
    words = [judged(with_scene("T2T", colour="red"), {"colour": "blue"}) for _ in range(2)]
    assert success([*sounds, *words]).mean.value == 0.5


def test_several_answers_to_a_prompt_are_one_prompt() -> None:
    one = judged(with_scene("T2T", colour="red"), {}, {"colour": "blue"}, {"colour": "blue", "size": "small"}, {})
    assert one.right == 0.5
    found = success([one])
    assert (found.subtasks["T2T"].right, found.subtasks["T2T"].asked) == (2, 4)
    assert found.subtasks["T2T"].share == wilson(0.5, 1), "one prompt is worth one"


def test_the_rating_is_the_share_of_dimensions_that_are_right() -> None:
    one = judged(with_scene("T2T", colour="red"), {}, {"colour": "blue"})
    assert one.rating == pytest.approx(7 / 8)  # a thing has four dimensions, two answers have eight


def test_groups_of_which_no_dimensions_are_known() -> None:
    found = Success.of_groups({"mine": [(1, 1), (0, 1)], "yours": [(2, 2), (2, 2)]})
    assert found.subtasks["mine"].share.value == 0.5
    assert found.mean.value == 0.75
    assert found.dimensions == found.by_dimension == {}
