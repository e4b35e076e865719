import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.events import feedback, response
from trainer.join_store import JoinStore, StateInUse

PLACE = ("topic", 0)


def names(joined: list) -> list[str]:
    return [one.feedback.feedback_id for one in joined]


def test_events_and_positions_are_kept_together(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    assert store.apply([response("a")], [feedback("f", "a", label=True)], {PLACE: 7}) == 1
    with pytest.raises(AttributeError):
        store.apply([response("b")], [None], {PLACE: 9})  # type: ignore[list-item]
    store.close()
    again = JoinStore(tmp_path / "state.db")
    assert again.positions() == {PLACE: 7}
    assert again.counts()["responses"] == 1
    assert names(again.ready()) == ["f"]


def test_feedback_joins_whichever_comes_first_and_however_late(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([], [feedback("early", "a", label=True)], {})
    assert store.ready() == []
    store.apply([response("a")], [], {})
    store.apply([], [feedback("late", "a", critique="no", created=9000)], {})
    assert names(store.ready()) == ["early", "late"]


def test_a_round_claims_feedback_once_and_redelivery_changes_nothing(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    events = [feedback(f"f{i}", "a", created=i) for i in range(3)]
    store.apply([response("a")], events, {PLACE: 4})
    claimed = store.begin_round(100, 100)
    assert claimed is not None
    assert claimed.offsets == {"topic": {"0": 4}}
    assert store.apply([response("a")], events, {PLACE: 2}) == 0
    assert store.positions() == {PLACE: 4}
    assert store.begin_round(100, 100) is None
    assert names(store.claimed(claimed.id)) == ["f0", "f1", "f2"]


def test_an_open_round_survives_the_process(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback("f", "a")], {PLACE: 1})
    claimed = store.begin_round(100, 100)
    assert claimed is not None
    store.close()
    again = JoinStore(tmp_path / "state.db")
    assert again.open_round() == claimed
    again.finish_round(claimed.id, "promoted")
    assert again.open_round() is None


def test_round_keys_of_two_states_differ(tmp_path: Path) -> None:
    keys = set()
    for folder in ("one", "two"):
        store = JoinStore(tmp_path / folder / "state.db")
        store.apply([response("a")], [feedback("f", "a")], {})
        claimed = store.begin_round(100, 100)
        assert claimed is not None
        keys.add(claimed.key)
    assert len(keys) == 2


def test_feedback_that_checkpoints_already_used_does_not_count_again(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.mark_used(["f0"])
    store.apply([response("a")], [feedback("f0", "a"), feedback("f1", "a", created=9)], {})
    assert names(store.ready()) == ["f1"]


def test_one_process_owns_the_state_at_a_time(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    with pytest.raises(StateInUse, match="another trainer works on"):
        JoinStore(tmp_path / "state.db")
    store.close()
    store.close()
    JoinStore(tmp_path / "state.db").close()


def test_a_state_is_fresh_until_something_of_the_log_is_in_it(tmp_path: Path) -> None:
    """Not merely until its file exists: a process killed before `mark_used` would count old feedback anew."""
    store = JoinStore(tmp_path / "state.db")
    store.mark_used(["f0"])
    store.close()
    again = JoinStore(tmp_path / "state.db")
    assert again.fresh
    again.apply([], [], {PLACE: 1})
    assert not again.fresh


def test_feedback_over_the_cap_waits_for_the_next_round(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback(f"f{i}", "a", created=i) for i in range(5)], {})
    first = store.begin_round(3, 100)
    assert first is not None
    store.finish_round(first.id, "promoted")
    second = store.begin_round(3, 100)
    assert second is not None
    assert names(store.claimed(second.id)) == ["f3", "f4"]
    assert names(store.earlier(second.id, 10)) == ["f0", "f1", "f2"]


def test_orphans_are_told_once_and_still_join(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback("f", "nowhere"), feedback("g", "a")], {})
    assert store.flag_orphans(time.time() - 60) == []
    assert store.flag_orphans(time.time() + 60) == ["f"]
    assert store.flag_orphans(time.time() + 60) == []
    store.apply([response("nowhere")], [], {})
    assert sorted(names(store.ready())) == ["f", "g"]


def test_pruning_forgets_old_events_but_not_that_they_were_used(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a", created=1)], [feedback("f", "a", created=2)], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    store.finish_round(claimed.id, "promoted")
    assert store.prune(older_than=1.0) == 1
    store.apply([response("a", created=1)], [feedback("f", "a", created=2)], {})
    assert store.ready() == []


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(range(12)), min_size=1, max_size=40), st.integers(1, 5))
def test_any_delivery_with_repeats_and_restarts_uses_each_event_once(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], restart_every: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "state.db"
    used: list[str] = []
    store = JoinStore(path)
    for step, number in enumerate([*order, *range(12)]):
        if number % 2:
            store.apply([], [feedback(f"f{number}", f"r{number - 1}")], {PLACE: step})
        else:
            store.apply([response(f"r{number}")], [], {PLACE: step})
        if step % restart_every == 0:
            store.close()
            store = JoinStore(path)
        claimed = store.open_round() or store.begin_round(100, 100)
        if claimed is not None and step % 3 == 0:
            used += names(store.claimed(claimed.id))
            store.finish_round(claimed.id, "promoted")
    while claimed := store.open_round() or store.begin_round(100, 100):
        used += names(store.claimed(claimed.id))
        store.finish_round(claimed.id, "promoted")
    store.close()
    assert sorted(used) == sorted(f"f{number}" for number in range(1, 12, 2))


def _write_forever(path: Path) -> None:
    store = JoinStore(path)
    number = store.positions().get(PLACE, 0)
    while True:
        store.apply([response(f"r{number}")], [feedback(f"f{number}", f"r{number}")], {PLACE: number + 1})
        number += 1


def test_a_killed_writer_leaves_exactly_what_its_position_says(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for _ in range(3):
        writer = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(path,))
        writer.start()
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        store = JoinStore(path)
        counts = store.counts()
        assert counts["responses"] == counts["feedback"] == store.positions().get(PLACE, 0)
        store.close()
