import multiprocessing
import os
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.anyloop.v1 import events_pb2
from tests.trainer.events import feedback, response
from trainer.join_store import JoinStore, StateInUse

PLACE = ("topic", 0)


def names(joined: list) -> list[str]:
    return [one.feedback.feedback_id for one in joined]


def claim(store: JoinStore, *caps: int, **more: Any) -> list[str]:
    """What a round that is run to its end claims."""
    claimed = store.begin_round(*(caps or (100, 100)), **more)
    if claimed is None:
        return []
    found = names(store.claimed(claimed.id))
    store.finish_round(claimed.id, "promoted")
    return found


def test_events_and_positions_are_kept_together(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    assert store.apply([response("a")], [feedback("f", "a", label=True)], {PLACE: 7}) == 1
    with pytest.raises(AttributeError):
        store.apply([response("b")], [None], {PLACE: 9})  # type: ignore[list-item]
    store.close()
    again = JoinStore(tmp_path / "state.db")
    assert again.positions() == {PLACE: 7}
    assert again.counts()["responses"] == 1
    assert again.ready()[0] == 1
    assert claim(again) == ["f"]


def test_feedback_joins_whichever_comes_first_and_however_late(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([], [feedback("early", "a", label=True)], {})
    assert store.ready()[0] == 0
    assert store.waiting() == 1
    store.apply([response("a")], [], {})
    store.apply([], [feedback("late", "a", critique="no", created=9000)], {})
    assert claim(store) == ["early", "late"]


def test_a_round_claims_feedback_once_and_redelivery_changes_nothing(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    events = [feedback(f"f{i}", "a", created=i) for i in range(3)]
    store.apply([response("a")], events, {PLACE: 4})
    claimed = store.begin_round(100, 100)
    assert claimed is not None
    assert claimed.offsets == {"topic": {"0": 4}}
    assert store.apply([response("a")], events, {PLACE: 4}) == 0
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
    store.apply([response("a")], [feedback(f"f{i}", "a", created=i) for i in range(4)], {})
    assert claim(store, 100, 2, used={"f0", "f1"}) == ["f2", "f3"]
    assert claim(store) == []


def test_feedback_that_another_trainer_used_leaves_the_round(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback(f"f{i}", "a", created=i) for i in range(3)], {})
    claimed = store.begin_round(100, 100)
    assert claimed is not None
    store.release(["f1"])
    assert names(store.claimed(claimed.id)) == ["f0", "f2"]
    store.finish_round(claimed.id, "promoted")
    assert claim(store) == []


def test_feedback_of_partitions_that_are_not_held_is_not_claimed(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    events = [feedback(f"f{i}", "a", created=i) for i in range(4)]
    store.apply([response("a")], events, {}, {f"f{i}": (i % 2, i) for i in range(4)})
    assert store.ready(held={1})[0] == 2
    assert store.ready(held=set())[0] == 0
    assert claim(store, held={1}) == ["f1", "f3"]
    assert claim(store, held={0, 1}) == ["f0", "f2"]


def test_one_process_owns_the_state_at_a_time(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    with pytest.raises(StateInUse, match="another trainer works on"):
        JoinStore(tmp_path / "state.db")
    store.close()
    store.close()
    JoinStore(tmp_path / "state.db").close()


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


def test_no_principal_brings_more_than_its_share(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    events = [feedback(f"a{i}", "r", created=i) for i in range(5)] + [feedback("b", "r", created=9, principal="bob")]
    store.apply([response("r")], events, {})
    assert claim(store, 2, 10) == ["a0", "a1", "b"]
    assert claim(store, 5, 2) == ["a2", "a3"]


def test_orphans_are_told_once_and_still_join(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback("f", "nowhere"), feedback("g", "a")], {})
    assert store.flag_orphans(time.time() - 60) == []
    assert store.flag_orphans(time.time() + 60) == ["f"]
    assert store.flag_orphans(time.time() + 60) == []
    store.apply([response("nowhere")], [], {})
    assert sorted(claim(store)) == ["f", "g"]


def test_a_preference_waits_for_both_responses(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("good")], [feedback("f", "good", preferred_over="bad")], {})
    assert store.ready()[0] == 0
    store.apply([response("bad")], [], {})
    assert claim(store) == ["f"]


def test_feedback_on_a_conversation_waits_for_a_response_made_before_it(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([], [feedback("f", created=250, conversation_id="talk", label=False)], {})
    store.apply([response("after", conversation="talk", created=300)], [], {})
    assert store.ready()[0] == 0
    store.apply([response("before", conversation="talk", created=200)], [], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    assert [one.response.response_id for one in store.claimed(claimed.id)] == ["before"]


HOUR_MS = 3_600_000


def test_feedback_beyond_the_join_window_is_overdue_and_not_ready(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db", late_after_s=3600)
    said = [
        feedback("in time", "a", created=1000 + HOUR_MS),
        feedback("late", "a", created=1001 + HOUR_MS),
        feedback("lost", "nowhere"),
    ]
    store.apply([response("a", created=1000)], said, {}, {"late": (3, 7), "lost": (2, 1)})
    assert store.ready()[0] == 1
    late = store.overdue(waiting_since=time.time() - 60)
    assert [(one.event.feedback_id, one.partition, one.offset, one.late) for one in late] == [("late", 3, 7, True)]
    both = store.overdue(waiting_since=time.time() + 60)
    assert [(one.event.feedback_id, one.late) for one in both] == [("lost", False), ("late", True)]
    assert [one.event.feedback_id for one in store.overdue(time.time() + 60, held={2})] == ["lost"]
    store.leave_out(one.event.feedback_id for one in both)
    assert store.overdue(time.time() + 60) == []
    store.apply([response("nowhere")], said, {})
    assert claim(store) == ["in time"]


def test_feedback_put_back_from_the_dead_letters_gets_another_chance_but_never_a_second_round(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    said = [feedback("lost", "nowhere"), feedback("used", "a")]
    store.apply([response("a")], said, {})
    assert claim(store) == ["used"]
    store.leave_out(["lost"])
    store.apply([response("nowhere")], said, {})
    assert store.ready()[0] == 0
    store.apply([], said, {}, put_back={"lost": 1, "used": 1})
    assert claim(store) == ["lost"]


def test_feedback_that_comes_back_from_the_dead_letters_to_a_state_where_it_waits_takes_its_new_place(
    tmp_path: Path,
) -> None:
    store = JoinStore(tmp_path / "state.db")
    said = [feedback("f", "nowhere")]
    store.apply([], said, {}, {"f": (1, 5)})
    for replays in (2, 1):  # the one that counts less is the older
        store.apply([], said, {}, {"f": (1, 7 + replays)}, put_back={"f": replays})
    (one,) = store.overdue(time.time() + 60)
    assert (one.partition, one.offset, one.replays) == (1, 9, 2)


def test_without_a_window_late_feedback_is_as_good_as_any(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a", created=1000)], [feedback("f", "a", created=1000 + 9999 * HOUR_MS)], {})
    assert store.overdue(time.time() - 60) == []
    assert claim(store) == ["f"]


def test_what_waits_costs_nothing_when_other_events_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([], [feedback(f"f{i}", f"r{i}") for i in range(500)], {})
    parsed = 0
    real = events_pb2.FeedbackEvent.FromString

    def count(data: bytes) -> events_pb2.FeedbackEvent:
        nonlocal parsed
        parsed += 1
        return real(data)

    monkeypatch.setattr("trainer.join_store.events_pb2.FeedbackEvent.FromString", count)
    for number in range(20):
        store.apply([response(f"r{number}")], [], {PLACE: number})
        assert store.ready()[0] == number + 1
        assert store.flag_orphans(time.time() - 60) == []
    assert parsed == 0
    plan = store._db.rows(
        "EXPLAIN QUERY PLAN UPDATE feedback SET delay = 1 WHERE round IS NULL AND delay IS NULL AND response = 'r'"
    )
    assert any("feedback_response" in step[3] for step in plan), plan


def test_no_question_of_a_poll_reads_all_that_is_unclaimed(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db", late_after_s=3600.0)
    asked: list[str] = []
    store._db._db.set_trace_callback(asked.append)
    store.ready({0, 1})
    store.waiting()
    store.flag_orphans(1.0)
    store.overdue(1.0, {0, 1})
    store.prune(1.0)
    store._db._db.set_trace_callback(None)
    statements = [sql for sql in asked if sql.startswith(("SELECT", "UPDATE", "DELETE"))]
    assert len(statements) == 10
    plans = {sql: [step[3] for step in store._db.rows(f"EXPLAIN QUERY PLAN {sql}")] for sql in statements}
    steps = [step for plan in plans.values() for step in plan]
    tables = ("SCAN feedback", "SCAN response", "SEARCH feedback", "SEARCH response")
    reading = [step for step in steps if step.startswith(tables)]
    assert len(reading) >= 7
    assert [step for step in reading if "USING" not in step] == []
    assert [step for step in reading if step.startswith("SCAN") and "COVERING" not in step] == []
    unclaimed = [plan for sql, plan in plans.items() if "round IS NULL" in sql and sql.startswith("SELECT")]
    assert [plan for plan in unclaimed if any("feedback_round" in step for step in plan)] == []


def test_pruning_forgets_old_events_but_not_that_they_were_used(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback("f", "a")], {})
    assert claim(store) == ["f"]
    assert store.prune(older_than=time.time() - 60) == 0
    assert store.prune(older_than=time.time() + 60) == 1
    store.apply([response("a")], [feedback("f", "a")], {})
    assert claim(store) == []


def test_ids_are_forgotten_after_the_dedupe_window(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a")], [feedback("f", "a"), feedback("waits", "b"), feedback("open", "a", created=9000)], {})
    assert claim(store, 100, 1) == ["f"]
    store.prune(time.time() - 60, forget_before=time.time() + 60)
    assert store.counts()["feedback"] == 2
    store.apply([response("a")], [feedback("f", "a")], {})
    assert sorted(claim(store)) == ["f", "open"]


def test_pruning_keeps_the_responses_of_what_may_yet_be_claimed(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    said = [
        feedback("f", "a"),
        feedback("g", "b", preferred_over="c"),
        feedback("h", conversation_id="talk", created=9000),
    ]
    talk = response("t", conversation="talk")
    store.apply([*map(response, "abc"), talk, response("old")], said, {})
    assert store.prune(older_than=time.time() + 60) == 1
    assert claim(store) == ["f", "g", "h"]


OLD_SCHEMA = """
CREATE TABLE response (id TEXT PRIMARY KEY, conversation TEXT, created INTEGER, data BLOB) WITHOUT ROWID;
CREATE INDEX response_conversation ON response (conversation);
CREATE TABLE feedback (
  id TEXT PRIMARY KEY, principal TEXT, key TEXT, created INTEGER, arrived REAL, data BLOB,
  round INTEGER, orphan INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE UNIQUE INDEX feedback_key ON feedback (principal, key) WHERE key != '';
CREATE INDEX feedback_round ON feedback (round);
CREATE TABLE identity (id TEXT NOT NULL);
CREATE TABLE position (topic TEXT, partition INTEGER, next INTEGER, PRIMARY KEY (topic, partition));
CREATE TABLE round (
  id INTEGER PRIMARY KEY AUTOINCREMENT, state TEXT NOT NULL, offsets TEXT NOT NULL, started REAL NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, outcome TEXT NOT NULL DEFAULT ''
);
"""


def test_the_state_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript(OLD_SCHEMA)
        old.execute("INSERT INTO identity VALUES ('abc')")
        old.execute("INSERT INTO position VALUES ('topic', 0, 5)")
        old.execute("INSERT INTO round (state, offsets, started) VALUES ('open', '{}', 1.0)")
        for name in ("a", "b"):
            row = (name, name, 1000, response(name).SerializeToString())
            old.execute("INSERT INTO response VALUES (?, ?, ?, ?)", row)
        for name, to, claimed in (("claimed", "a", 1), ("free", "b", None), ("waits", "c", None)):
            data = feedback(name, to).SerializeToString()
            old.execute("INSERT INTO feedback VALUES (?, 'ada', '', 2000, 1.0, ?, ?, 0)", (name, data, claimed))
    store = JoinStore(path)
    left = store.open_round()
    assert left is not None
    assert left.key == "abc-1"  # what it has published is still found
    assert names(store.claimed(left.id)) == ["claimed"]
    store.finish_round(left.id, "promoted")
    store.apply([response("c")], [], {})
    assert claim(store, held={7}) == ["free", "waits"]
    assert store.positions() == {PLACE: 5}


AS_IN_2 = """
DROP INDEX feedback_ready;
DROP INDEX feedback_waiting;
DROP INDEX feedback_round;
DROP INDEX feedback_untold;
DROP INDEX response_arrived;
ALTER TABLE feedback DROP COLUMN replays;
CREATE INDEX feedback_round ON feedback (round);
CREATE INDEX feedback_ready ON feedback (created, id) WHERE round IS NULL AND delay IS NOT NULL;
CREATE INDEX feedback_late ON feedback (delay) WHERE round IS NULL AND delay IS NOT NULL;
CREATE INDEX feedback_waiting ON feedback (arrived) WHERE round IS NULL AND delay IS NULL;
PRAGMA user_version = 2;
"""


def schema(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as opened:
        return {name for (name,) in opened.execute("SELECT name || coalesce(sql, '') FROM sqlite_master")}


def test_the_state_of_schema_2_is_taken_over(tmp_path: Path) -> None:
    JoinStore(tmp_path / "new.db").close()
    path = tmp_path / "state.db"
    store = JoinStore(path)
    store.apply([response("a")], [feedback("ready", "a"), feedback("waits", "c")], {PLACE: 5}, {"waits": (3, 4)})
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.executescript(AS_IN_2)
    store = JoinStore(path)
    (one,) = store.overdue(time.time() + 60)
    assert (one.event.feedback_id, one.partition, one.offset, one.replays) == ("waits", 3, 4, 0)
    assert claim(store) == ["ready"]
    indexes = {line for line in schema(path) if "INDEX" in line}
    assert indexes == {line for line in schema(tmp_path / "new.db") if "INDEX" in line}


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


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the first comes last"])
def test_feedback_teaches_the_attempt_that_the_client_saw(tmp_path: Path, order: tuple[int, int]) -> None:
    """A replica cut off from the gateway ends its answer into the void, and another one answers under the same id."""
    store = JoinStore(tmp_path / "state.db")
    for attempt in order:
        store.apply([response("a", output=[3 + attempt], created=1000 + attempt, attempt=attempt)], [], {})
    store.apply([response("b", output=[9])], [feedback("f", "a", label=True, preferred_over="b")], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    (joined,) = store.claimed(claimed.id)
    assert list(joined.response.output_token_ids) == [4]
    assert store.counts()["responses"] == 2


def test_what_had_joined_an_attempt_that_nobody_saw_joins_the_one_that_was(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db", late_after_s=10)
    store.apply([response("a", created=1000)], [feedback("f", "a", created=20_000, label=True)], {})
    assert store.ready()[0] == 0  # said 19 seconds after what nobody saw
    store.apply([response("a", output=[5], created=15_000, attempt=5)], [], {})
    assert store.ready()[0] == 1


def test_an_attempt_that_somebody_else_claims_changes_nothing(tmp_path: Path) -> None:
    store = JoinStore(tmp_path / "state.db")
    store.apply([response("a", principal="ann")], [feedback("f", "a", label=True)], {})
    store.apply([response("a", output=[9], principal="thief", attempt=9)], [], {})
    claimed = store.begin_round(10, 10)
    assert claimed is not None
    assert list(store.claimed(claimed.id)[0].response.output_token_ids) == [3, 4]
