"""The annotator says what the judge found, in varied wording; its habits come in the stated shares."""

import numpy as np
import pytest

from anyloop.world import tasks
from anyloop.world.annotate import Annotator, names_exactly, read_critique, true_claims
from anyloop.world.pretrain.corpus import corrupt
from anyloop.world.tasks import SUBTASKS


def wrong_answers(subtask, count, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        task = tasks.sample(subtask, "train", rng)
        said = corrupt(task, rng)
        answer = tasks.answer_with(task, said.words, said.shown, rng)
        yield task, answer, tasks.judge(task, answer)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_an_honest_critique_names_exactly_what_is_wrong(subtask):
    annotator = Annotator(np.random.default_rng(1))
    spoken = set()
    for task, answer, judgement in wrong_answers(subtask, 80):
        assert not judgement.ok
        words = annotator.critique(task, answer, judgement)
        assert names_exactly(task, words, judgement), words
        spoken.add(words)
    assert len(spoken) > 15


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_a_right_answer_is_called_right(subtask):
    rng = np.random.default_rng(2)
    task = tasks.sample(subtask, "train", rng)
    answer = tasks.right_answer(task, rng)
    judgement = tasks.judge(task, answer)
    words = Annotator(rng).critique(task, answer, judgement)
    assert read_critique(task, words).right
    assert Annotator(rng).label(judgement)
    assert Annotator(rng).rating(judgement) == 1.0


def test_wrong_vague_and_partial_shares_are_as_set():
    annotator = Annotator(np.random.default_rng(3), wrong_share=0.2, vague_share=0.3, partial_share=1.0)
    exact = vague = wrong = 0
    for task, answer, judgement in wrong_answers("T2I", 600):
        reading = read_critique(task, annotator.critique(task, answer, judgement))
        if not reading.claims and not reading.right:
            vague += 1
        elif reading.right or not reading.claims <= true_claims(judgement):
            wrong += 1
        else:
            exact += 1
    assert 0.14 < wrong / 600 < 0.26
    assert 0.18 < vague / 600 < 0.30  # 0.3 of the 0.8 that are not wrong
    assert exact + vague + wrong == 600


def test_a_partial_critique_names_some_of_several_faults():
    annotator = Annotator(np.random.default_rng(4), partial_share=1.0)
    for task, answer, judgement in wrong_answers("T2A", 100):
        if len(judgement.failed) > 1:
            claims = read_critique(task, annotator.critique(task, answer, judgement)).claims
            assert claims < true_claims(judgement)
            assert claims


def test_a_refinement_is_right():
    rng = np.random.default_rng(5)
    task = tasks.sample("TI2TI", "train", rng)
    assert tasks.judge(task, Annotator(rng).refinement(task)).ok
