"""Pairs kept in the trainer's state: for later rounds, and for a round that was killed."""

import time
from pathlib import Path

import pytest

from tests.trainer.events import feedback, response
from trainer.examples import Pair
from trainer.join_store import JoinStore
from trainer.replay_buffer import fingerprint, replayed


def pair(number: int, origin: str = "self-improving", weight: float = 1.0) -> Pair:
    return Pair((1, number), (2, number), (3, number), origin, f"r{number}", weight, ("ada",))  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> JoinStore:
    return JoinStore(tmp_path / "state.db")


def run_round(store: JoinStore, outcome: str, pairs: list[Pair], made_of: str = "x", rounds: int = 4) -> int:
    number = store._db.rows("SELECT count(*) FROM round")[0][0]
    store.apply([response(f"r{number}")], [feedback(f"f{number}", f"r{number}")], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    store.pairs.keep(claimed.id, made_of, pairs, {"pairs": len(pairs)}, rounds)
    if outcome:
        store.finish_round(claimed.id, outcome)
    return claimed.id


def test_a_killed_round_finds_its_pairs_again_if_they_are_made_of_the_same(store: JoinStore, tmp_path: Path) -> None:
    number = run_round(store, "", [pair(1, weight=0.3), pair(2, "verdict")])
    store.close()
    again = JoinStore(tmp_path / "state.db")
    kept = again.pairs.kept(number, "x")
    assert kept is not None
    assert kept.pairs == [pair(1, weight=0.3), pair(2, "verdict")]
    assert kept.metrics == {"pairs": 2}
    assert again.pairs.kept(number, "of another policy") is None
    assert again.pairs.kept(number + 1, "x") is None


def test_earlier_rounds_come_newest_first_and_no_farther_back_than_asked(store: JoinStore) -> None:
    for number in range(3):
        run_round(store, "promoted", [pair(number)])
    assert [(age, one.source) for age, one in store.pairs.earlier(4, 2)] == [(1, "r2"), (2, "r1")]


def test_of_a_rejected_round_only_peoples_own_pairs_count(store: JoinStore) -> None:
    run_round(store, "rejected", [pair(1), pair(2, "refinement")])
    assert [one.source for _, one in store.pairs.earlier(2, 4)] == ["r2"]


@pytest.mark.parametrize(
    "outcome", ["no candidate: too few pairs", "failed: by its own fault", "superseded: by others"]
)
def test_a_round_without_a_candidate_leaves_nothing_to_replay(store: JoinStore, outcome: str) -> None:
    run_round(store, outcome, [pair(1), pair(2, "refinement")])
    assert store.pairs.earlier(2, 4) == []


def test_a_round_that_was_given_back_can_drop_its_pairs(store: JoinStore) -> None:
    number = run_round(store, "", [pair(1)])
    store.pairs.drop(number)
    assert store.pairs.kept(number, "x") is None


def test_what_a_round_held_out_is_remembered_with_its_round(store: JoinStore) -> None:
    store.apply([response("r")], [feedback("f", "r")], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    store.pairs.keep(claimed.id, "x", [pair(1), pair(2)], {}, 4, {"r2"})
    store.finish_round(claimed.id, "undecided")
    assert store.pairs.held_out(claimed.id + 2, 4) == {(2, "r2")}
    assert len(store.pairs.earlier(claimed.id + 2, 4)) == 2


def test_old_pairs_are_deleted_by_number_of_rounds_and_by_age(store: JoinStore) -> None:
    for number in range(4):
        run_round(store, "promoted", [pair(number)], rounds=2)
    assert {age for age, _ in store.pairs.earlier(5, 99)} == {1, 2, 3}
    store.prune(older_than=time.time() + 60)
    assert store.pairs.earlier(5, 99) == []


def test_replayed_pairs_are_a_share_drawn_by_seed_and_decay_with_age() -> None:
    earlier = [(1, pair(n)) for n in range(10)] + [(3, pair(n, weight=0.5)) for n in range(10, 20)]
    fresh = [pair(n) for n in range(100, 120)]
    again = replayed(earlier, fresh, 0.4, 0.5, seed=3)
    assert len(again) == 8
    assert again == replayed(earlier, fresh, 0.4, 0.5, seed=3)
    assert again != replayed(earlier, fresh, 0.4, 0.5, seed=4)
    assert {one.weight for one in again} == {0.5, 0.0625}  # 1 * .5, and .5 * .5^3


def test_what_the_round_made_itself_is_not_replayed() -> None:
    fresh = [pair(n) for n in range(4)]
    assert replayed([(1, one) for one in fresh], fresh, 1.0, 0.7, seed=0) == []
    assert replayed([(1, pair(9))], fresh, 0.0, 0.7, seed=0) == []


def test_a_fingerprint_tells_what_differs() -> None:
    assert fingerprint("policy-1", ["f1"], {"a": 1.0}) == fingerprint("policy-1", ["f1"], {"a": 1.0})
    assert fingerprint("policy-1", ["f1"], {}) != fingerprint("policy-2", ["f1"], {})


def test_trust_is_kept_per_statement_and_forgotten_with_it(store: JoinStore, tmp_path: Path) -> None:
    store.apply([response("a")], [feedback("f1", "a"), feedback("f2", "a")], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    store.trust.keep(claimed.id, {"f1": 0.0, "f2": 0.75})
    store.close()
    again = JoinStore(tmp_path / "state.db")
    assert again.trust.of_round(claimed.id) == {"f1": 0.0, "f2": 0.75}
    assert again.trust.of(["f2", "f3"]) == {"f2": 0.75}
    again.finish_round(claimed.id, "promoted")
    again.prune(time.time() + 60, forget_before=time.time() + 60)
    assert again.trust.of(["f1", "f2"]) == {}
