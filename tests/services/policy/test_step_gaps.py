"""Gaps between decode steps, and the windows that loads and switches look at them through."""

from __future__ import annotations

import threading

from services.policy.engine.step_gaps import StepGaps


def test_a_window_holds_the_longest_gap_inside_it_and_the_usual_one_before() -> None:
    gaps = StepGaps()
    for now in (0.0, 1.0, 2.0, 4.0):
        gaps.step(now, goes_on=True)
    window = gaps.open()
    gaps.step(7.0, goes_on=True)
    gaps.step(8.0, goes_on=True)
    gaps.close(window)
    gaps.step(100.0, goes_on=True)
    assert (window.usual, window.longest) == (1.0, 3.0)


def test_a_rest_is_no_gap() -> None:
    gaps = StepGaps()
    window = gaps.open()
    gaps.step(0.0, goes_on=False)
    gaps.step(50.0, goes_on=True)
    gaps.step(51.0, goes_on=True)
    assert (window.usual, window.longest) == (0.0, 1.0)


def test_what_prompts_took_is_left_out() -> None:
    gaps = StepGaps()
    window = gaps.open()
    gaps.step(0.0, goes_on=True, aside=5.0)
    gaps.step(3.0, goes_on=True, aside=1.5)
    assert window.longest == 1.5


def test_a_step_that_only_read_ends_no_gap() -> None:
    gaps = StepGaps()
    window = gaps.open()
    gaps.step(0.0, goes_on=True)
    gaps.step(2.0, goes_on=True, aside=0.5, decoded=False)
    gaps.step(3.0, goes_on=True, decoded=False)
    assert window.longest == 0.0
    gaps.step(4.0, goes_on=True, aside=0.25)
    assert window.longest == 3.25
    gaps.step(5.0, goes_on=True)
    assert gaps.open().usual == (3.25 + 1.0) / 2


def test_the_step_that_ends_a_window_is_the_last_that_counts() -> None:
    gaps = StepGaps()
    gaps.step(0.0, goes_on=True)
    window = gaps.open()
    answers = iter([False, True])
    window.close_when(lambda: next(answers))
    stepping = threading.Thread(target=lambda: [gaps.step(now, goes_on=True) for now in (1.0, 3.0, 50.0)])
    stepping.start()
    window.wait_closed(10)
    stepping.join(10)
    assert window.longest == 2.0
