"""The verdict of `make bench-swap`: what counts as dropped and garbled, and what a stall is held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anyloop.sequence import SequenceLayout
from bench.swap.greedy import Greedy
from bench.swap.run import copy_seconds, perturbed
from bench.swap.table import failed
from bench.swap.verdict import Deviation, Reply, Swap, client_gaps, deviations, dropped, stalls
from services.policy.engine import load_checkpoint
from services.policy.engine.answer_masks import MaskTable
from tests.models.random_omni import build_random_omni

OWN = {"a": [[1, 2, 3], [4, 5, 6]], "b": [[1, 9, 9], [4, 5, 6]]}


def reply(prompt: int, tokens: list[int], *spans: tuple[str, int, int], finished: bool = True) -> Reply:
    return Reply(prompt, tokens, list(spans) or [("a", 0, len(tokens))], finished=finished)


def swap(longest: float, usual: float = 0.010, began: float = 0.0, ended: float = 1.0) -> Swap:
    return Swap(began, ended, load=0.05, switch=0.001, longest_gap=longest, usual_gap=usual)


def test_an_answer_is_dropped_that_failed_or_did_not_end_or_has_holes() -> None:
    good = reply(0, [1, 2, 3])
    bad = [
        Reply(0, error="UNAVAILABLE: gone"),
        reply(0, [1, 2], finished=False),
        reply(0, [1, 2, 3], ("a", 0, 2)),
        reply(0, [1, 2, 3], ("a", 0, 1), ("b", 2, 3)),
        reply(0, []),
    ]
    assert dropped([good, *bad]) == bad


def test_an_answer_is_garbled_that_is_neither_versions_own() -> None:
    good = [reply(0, [1, 2, 3]), reply(0, [1, 9, 9], ("b", 0, 3)), reply(1, [4, 5, 6])]
    assert deviations(good, OWN) == []
    others = [
        reply(0, [1, 9, 9]),  # the other version's text under this one's name
        reply(1, [4, 5]),  # cut short
        reply(0, [1, 2, 3], ("a", 0, 2), ("b", 2, 3)),  # two versions in one answer
    ]
    assert deviations(others, OWN) == [
        Deviation("a", 0, [1, 9, 9]),
        Deviation("a", 1, [4, 5]),
        Deviation("a", 0, [1, 2, 3], mixed=True),
    ]


def test_a_tie_is_greedy_to_its_end(tmp_path: Path) -> None:
    directory = build_random_omni(tmp_path / "model", seed=0)
    layout = SequenceLayout.load(directory)
    width, end = layout.vocabulary_size, layout.end
    forward = load_checkpoint(directory, "v0").forward
    greedy, prompt, output = Greedy(directory, 12), [1, 2, 3], list[int]()
    table = MaskTable(layout, width)
    state = table.answer(["text"], 12)
    while len(output) < 12 and end not in output:
        row, tokens = state.row(12 - len(output)), range(width)
        allowed = [token for token in tokens if table.rows[row, token] == 0]
        scores = forward.score([[*prompt, *output, token] for token in allowed])
        output.append(max(zip(scores, allowed, strict=True), key=lambda pair: float(pair[0][-1]))[1])
        state.advance(output[-1])
    assert greedy.could_answer(prompt, output)
    assert not greedy.could_answer(prompt, output[:-1])  # cut short
    assert not greedy.could_answer(prompt, [*output, output[-1]])
    for at in range(1, len(output)):  # garbled behind a good beginning
        other = 5 if output[at] != 5 else 6
        assert not greedy.could_answer(prompt, [*output[:at], other, *output[at + 1 :]])


def test_a_gap_is_held_against_two_steps_and_a_copy() -> None:
    figures = stalls([swap(0.020), swap(0.020), swap(0.022)], copy_seconds=0.002)
    assert figures["quiet_p99_ms"] is None
    assert figures["step_ms"] == pytest.approx(10.0)
    assert figures["allowed_ms"] == pytest.approx(22.0)
    assert figures["gap_p50_ms"] == pytest.approx(20.0)
    assert figures["gap_p99_ms"] == pytest.approx(21.96)  # 0.98 of the way from 20 to 22
    assert figures["gap_max_ms"] == pytest.approx(22.0)
    assert figures["gap_p99_steps"] == pytest.approx(2.196)
    assert [figures[f"stall_{part}_ms"] for part in ("p50", "p99", "max")] == pytest.approx([10.0, 11.96, 12.0])
    assert figures["met"]
    assert stalls([replace(swap(0.020), quiet_gap=0.015)], 0.0)["quiet_p99_ms"] == pytest.approx(15.0)
    assert not stalls([swap(0.020), swap(0.030)], copy_seconds=0.002)["met"]


def test_the_silence_that_clients_hear_is_told_from_the_one_before() -> None:
    heard = Reply(0, arrivals=[0.0, 0.4, 1.0, 1.7, 2.0])
    gaps = client_gaps([heard], [swap(0.01, began=1.0, ended=2.0)])
    assert gaps == {"client_gap_p99_ms": pytest.approx(700.0), "client_gap_before_p99_ms": pytest.approx(600.0)}


def test_only_lost_or_garbled_answers_fail_the_run() -> None:
    fine = {"dropped": 0, "garbled": 0, "met": False, "ties": 3}
    assert not failed({"rows": [fine, {"dropped": 0}]})
    assert failed({"rows": [fine, {"dropped": 1}]})
    assert failed({"rows": [{"dropped": 0, "garbled": 1}]})


def test_the_other_version_has_other_weights_of_the_same_shapes_and_the_same_zeros(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    weights = {"w": torch.tensor([[1.0, 0.0], [2.0, -3.0]])}
    save_file(weights, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text("{}")
    changed = load_file(perturbed(tmp_path / "model", tmp_path / "other") / "model.safetensors")["w"]
    assert (tmp_path / "other" / "config.json").exists()
    assert changed.shape == weights["w"].shape
    assert changed[0, 1] == 0.0
    assert bool((changed != weights["w"])[weights["w"] != 0].all())
    assert torch.allclose(changed, weights["w"], rtol=0.25)
    assert copy_seconds(tmp_path / "model") >= 0.0
