"""From the pairs there are to those that a round trains on."""

from collections import Counter
from dataclasses import replace

import pytest

from anyloop.sequence import Sequencer, Turn
from trainer.algorithms.feedback_modelling import is_held_out
from trainer.config import TrainerSettings
from trainer.examples import Example, Pair
from trainer.pair_selection import select_pairs, unwatched


@pytest.fixture(scope="module")
def make(sequencer: Sequencer):  # type: ignore[no-untyped-def]
    def pair(number: int, origin: str = "self-improving", voices: tuple[str, ...] = (), name: str = "r") -> Pair:
        prompt = tuple(sequencer.prompt([Turn("user", (f"{name} {number}",))]))
        good, bad = (tuple(sequencer.answer([text])) for text in ("a", "b"))
        return Pair(prompt, good, bad, origin, f"{name}{number}", 1.0, voices)  # type: ignore[arg-type]

    return pair


def test_peoples_own_come_first_and_the_rest_is_cut_and_counted(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    made = [make(n) for n in range(20)] + [make(n, "refinement", ("ada",)) for n in range(100, 104)]
    found = select_pairs(made, [], sequencer.layout, TrainerSettings(max_pairs=10), 1)
    assert Counter(pair.origin for pair in found.pairs) == {"refinement": 4, "self-improving": 6}
    assert found.left_out == {"beyond_max_pairs": 14}
    assert found.metrics["pairs_by_origin"] == {"refinement": 4, "self-improving": 6}
    assert (found.fresh, found.watched) == (10, [])  # too few to hold any out
    assert found == select_pairs(made, [], sequencer.layout, TrainerSettings(max_pairs=10), 1)


def test_a_share_of_a_large_round_is_watched_and_never_trained_on(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    made = [make(n) for n in range(200)]
    settings = TrainerSettings(forgetting_held_out=0.2)
    found = select_pairs(made, [], sequencer.layout, settings, 1)
    watched = {pair.source for pair in found.watched}
    assert watched == {f"r{n}" for n in range(200) if is_held_out(f"r{n}", 0.2)}
    assert 20 < len(watched) < 60
    assert not watched & {pair.source for pair in found.pairs}
    off = select_pairs(made, [], sequencer.layout, TrainerSettings(forgetting="off"), 1)
    assert (len(off.pairs), off.watched) == (200, [])


def test_what_people_gave_is_always_learned_from(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    machine = [make(n) for n in range(200)]
    people = [replace(pair, origin="refinement") for pair in machine[:150]]
    settings = TrainerSettings(forgetting_held_out=0.2, replay_pairs=0, max_pairs=1000)
    found = select_pairs([*people, *machine[100:]], [], sequencer.layout, settings, 1)
    assert sum(pair.origin == "refinement" for pair in found.pairs) == 150
    assert found.watched
    assert not {pair.source for pair in found.watched} & {pair.source for pair in found.pairs}


def test_earlier_rounds_are_mixed_in_with_less_weight_and_their_held_out_pairs_watch(
    sequencer: Sequencer, make
) -> None:  # type: ignore[no-untyped-def]
    made = [make(n) for n in range(20)]
    earlier = [(2, make(n, name="old")) for n in range(60)]
    settings = TrainerSettings(replay_pairs=0.5, replay_decay=0.5, forgetting_held_out=0.3)
    kept_back = {(2, f"old{n}") for n in range(60) if is_held_out(f"old{n}", 0.3)}
    found = select_pairs(made, earlier, sequencer.layout, settings, 1, kept_back)
    again = [pair for pair in found.pairs if pair.source.startswith("old")]
    assert [pair.weight for pair in again] == [0.25] * 10
    assert (found.fresh, found.metrics["pairs_replayed"]) == (20, 10)
    assert all(not is_held_out(pair.source, 0.3) for pair in again)
    assert {pair.source for pair in found.watched} == {f"old{n}" for n in range(60) if is_held_out(f"old{n}", 0.3)}


def test_what_an_earlier_round_has_trained_on_never_watches(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    """A round of fewer than a hundred pairs trains on all of them, whatever their hashes say."""
    settings = TrainerSettings(forgetting_held_out=0.3, replay_pairs=10.0)
    small = [make(n, name="old") for n in range(60)]
    first = select_pairs(small, [], sequencer.layout, settings, 1)
    assert (len(first.pairs), first.held_out) == (60, frozenset())
    made = [make(n) for n in range(200)]
    second = select_pairs(made, [(1, one) for one in small], sequencer.layout, settings, 2, set())
    assert not {one.source for one in second.watched} & {one.source for one in first.pairs}
    assert second.held_out == {one.source for one in second.watched}
    assert second.metrics["pairs_replayed"] == 60
    # The same answer, held out two rounds ago and trained on in the last one: only the held-out pair watches.
    twice = [(1, make(5)), (2, make(5))]
    third = select_pairs(small, twice, sequencer.layout, settings, 3, {(2, "r5")})
    assert [one.source for one in third.watched] == ["r5"]
    off = select_pairs(small, twice, sequencer.layout, TrainerSettings(forgetting="off"), 3, {(2, "r5")})
    assert off.watched == []


def test_watched_answers_are_not_imitated_either(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    watched = make(1)
    chosen, _ = watched.sequences
    others = [Example(make(n).sequences[0], f"r{n}") for n in range(2, 5)]
    same_source, same_answer = Example(others[0].sequence, watched.source), Example(chosen, "of another response")
    assert unwatched([same_source, *others, same_answer], [watched]) == others


def test_the_cut_falls_on_peoples_pairs_alike(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    made = [make(n, "verdict", ("ada" if n < 50 else "bob",)) for n in range(90)]
    settings = TrainerSettings(max_pairs=50)
    found = select_pairs(made, [], sequencer.layout, settings, 1)
    assert 10 < sum(pair.voices == ("bob",) for pair in found.pairs) < 40
    assert found == select_pairs(made, [], sequencer.layout, settings, 1)


def test_the_cap_on_influence_comes_after_everything_else(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    made = [make(n, "verdict", ("eve",)) for n in range(10)]
    made += [make(n, "verdict", (f"p{n % 4}",)) for n in range(100, 108)]
    found = select_pairs(made, [], sequencer.layout, TrainerSettings(max_principal_share=0.25), 1)
    heavy = sum(pair.weight for pair in found.pairs if pair.voices == ("eve",))
    assert heavy / sum(pair.weight for pair in found.pairs) == pytest.approx(0.25)
    assert found.metrics["pairs_largest_share_before"] == pytest.approx(10 / 18, abs=1e-3)
    assert found.metrics["pairs_voices_capped"] == 1


def test_what_is_too_long_is_counted(sequencer: Sequencer, make) -> None:  # type: ignore[no-untyped-def]
    made = [make(n) for n in range(5)]
    found = select_pairs(made, [(1, make(9))], sequencer.layout, TrainerSettings(max_tokens=8), 1)
    assert (found.pairs, found.left_out) == ([], {"too_long": 5})
