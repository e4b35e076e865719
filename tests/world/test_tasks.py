"""Tasks are varied, and combinations of one split never appear in another."""

import numpy as np
import pytest

from anyloop.world import tasks
from anyloop.world.scenes import SPLITS, Clip, Picture, Sound, Things
from anyloop.world.tasks import SUBTASKS

SIZES = {Picture: (210, 22, 56), Sound: (103, 18, 41), Clip: (142, 16, 34), Things: (46, 11, 15)}


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_splits_are_fixed_and_cover_every_combination_once(kind):
    """The literals pin the split: another hash would silently train on what an older model calls held out."""
    scenes = [kind.of_split(split) for split in SPLITS]
    assert tuple(map(len, scenes)) == SIZES[kind]
    assert sorted(map(str, (s for part in scenes for s in part))) == sorted(map(str, kind.every()))


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_task_belongs_to_its_split_and_its_prompt_varies(subtask):
    rng = np.random.default_rng(0)
    drawn = [tasks.sample(subtask, "heldout", rng) for _ in range(60)]
    assert all(task.scene.split == "heldout" for task in drawn)
    assert all(task.source is None or task.source.split == "train" for task in drawn)
    assert len({task.prompt for task in drawn}) >= 4
    assert all(bool(task.media) == (subtask[1] != "2") for task in drawn)


def test_the_same_seed_gives_the_same_tasks():
    first = [tasks.sample(s, "train", np.random.default_rng(3)).prompt for s in SUBTASKS]
    second = [tasks.sample(s, "train", np.random.default_rng(3)).prompt for s in SUBTASKS]
    assert first == second


def test_understanding_prompts_do_not_give_the_answer_away():
    rng = np.random.default_rng(1)
    for subtask in ("TI2T", "TA2T", "TV2T"):
        for _ in range(40):
            task = tasks.sample(subtask, "train", rng)
            assert not set(task.prompt.lower().split()) & (set(task.scene.attributes().values()) - {"left", "right"})
